// All generations that the page follows, on one connection: `GET /v1/events`.

import { ENDINGS, UNAUTHORISED, authorization, deny } from "./gateway.js";
import { notAfter } from "./page.js";
import { EventStream } from "./sse.js";

/** @typedef {{id: string, event: string, data: any}} Told one event of one generation; `id` is its cursor */
/** @typedef {{take(event: Told): void, state(state: string, message?: string): void}} Reader */

/** Told again, or of no place in the log: to be passed on whatever the cursor. */
const ALWAYS = new Set(["gap", "gone"]);

/**
 * Whoever is followed anew, or no more, costs the connection another beginning, at the cursors that all others have:
 * its URL holds them, and so it needs no other way to resume.
 */
export class Follower {
  /** @type {Map<string, {cursor: string, reader: Reader}>} */
  #followed = new Map();
  #stream = null;
  #paused = false;
  #due = 0;

  /** From behind `after`, or from the start. @param {string} id @param {Reader} reader */
  follow(id, reader, after = "") {
    this.#followed.set(id, { cursor: after, reader });
    this.#restart();
  }

  leave(id) {
    if (this.#followed.delete(id)) this.#restart();
  }

  /** A browser has six connections to a gateway, for all its tabs: a tab that is hidden gives its own back. */
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

  /** Once for all that came and went in this turn. */
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
    const anew = type === "reset" && told.cursor === "0-0"; // the log is another one, all of it follows
    if (!anew && !ALWAYS.has(type)) {
      if (place.cursor && notAfter(told.cursor, place.cursor)) return;
      place.cursor = told.cursor;
    }
    if (anew) place.cursor = "";
    if (ENDINGS.has(type)) this.#followed.delete(told.generation); // nothing more comes, and nothing is asked for
    place.reader.take({ id: told.cursor, event: type, data: told.data });
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
