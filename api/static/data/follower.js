// Follows all generations of the page over one connection: `GET /v1/events`.

import { notAfter } from "./cursors.js";
import { ENDINGS, UNAUTHORISED, authorization, deny } from "./gateway.js";
import { EventStream } from "./sse.js";

/** @typedef {{id: string, event: string, data: any, at?: number}} Told  `id`: cursor, `at`: ms since its attempt began */
/** @typedef {{take(event: Told): void, state(state: string, message?: string): void}} Reader */

/** Events without a position in the log, or sent again: passed on regardless of the cursor. */
const ALWAYS = new Set(["gap", "gone"]);

/**
 * Adding or removing a generation reconnects, at the cursors of all others: the URL contains them, so no other way to
 * resume is needed.
 */
export class Follower {
  /** @type {Map<string, {cursor: string, reader: Reader}>} */
  #followed = new Map();
  #stream = null;
  #paused = false;
  #due = 0;

  /** Follows a generation after the cursor `after`, or from its start. @param {string} id @param {Reader} reader */
  follow(id, reader, after = "") {
    this.#followed.set(id, { cursor: after, reader });
    this.#restart();
  }

  leave(id) {
    if (this.#followed.delete(id)) this.#restart();
  }

  /** Closes the connection: a browser has six per gateway, for all its tabs, so a hidden tab must not keep one. */
  pause() {
    this.#paused = true;
    this.#stream?.stop();
    this.#stream = null;
  }

  resume() {
    if (!this.#paused) return;
    this.#paused = false;
    this.#restart();
  }

  /** Reconnects once for all changes in the same turn of the event loop. */
  #restart() {
    this.#due ||= setTimeout(() => {
      this.#due = 0;
      this.#stream?.stop();
      this.#stream = this.#paused || !this.#followed.size ? null : this.#open();
    });
  }

  #open() {
    return new EventStream({
      url: () => `/v1/events?${[...this.#followed].map(([id, { cursor }]) => place(id, cursor)).join("&")}`,
      headers: authorization,
      onmessage: (message) => this.#take(message),
      onstate: (state, refusal) => this.#tell(state, refusal),
    });
  }

  #take({ type, data }) {
    const told = JSON.parse(data);
    const place = this.#followed.get(told.generation);
    if (!place) return;
    const anew = type === "reset" && told.cursor === "0-0"; // the log was replaced; all of it follows
    if (!anew && !ALWAYS.has(type)) {
      if (place.cursor && notAfter(told.cursor, place.cursor)) return;
      place.cursor = told.cursor;
    }
    if (anew) place.cursor = "";
    if (ENDINGS.has(type)) this.#followed.delete(told.generation); // no more events: leave it out of the next request
    place.reader.take({ id: told.cursor, event: type, data: told.data, at: told.at });
    if (ENDINGS.has(type)) place.reader.state("ended");
    if (!this.#followed.size) this.#restart();
  }

  #tell(state, refusal) {
    const all = [...this.#followed.values()];
    if (state === "refused" && refusal.status === UNAUTHORISED) deny();
    if (state === "refused" || state === "ended") this.#followed.clear();
    for (const { reader } of all) reader.state(state, refusal?.message);
  }
}

const place = (id, cursor) => `generation=${id}${cursor && `@${cursor}`}`;
