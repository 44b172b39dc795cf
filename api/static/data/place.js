// What the log of a followed generation does not tell: the position in the queue, that its worker was lost, and whether
// its worker is alive. The gateway is asked for it.

import { notAfter } from "./cursors.js";
import { ask, pathOf } from "./gateway.js";

const QUIET = 3000; // ms without an event, after which its worker may be lost
const PAUSE = 10_000; // longest ms between two questions whether it is: the answer contains the whole text

/** @typedef {{renewed_at: number, expires_at: number}} Lease  unix seconds */

export class Place {
  /** @type {?{reason: string, retry_at: ?number, position?: ?number}} null while it does not wait */
  queue = null;
  /** Names of the upstreams that it waits for, as far as they are known. @type {string[]} */
  upstreams = [];
  /** Why its attempt was given up, while it waits for another one. */
  interrupted = "";
  /** The lease of its worker, as of the last answer; also before its call has an answer. @type {?Lease} */
  lease = null;
  #asking = false;
  #asked = 0; // ms
  #owner = null; // name of the first upstream of its model

  /** @param {string} id  @param {() => void} onchange */
  constructor(id, onchange) {
    Object.assign(this, { id, onchange });
  }

  /** Starts with a generation that was read before the events of its recording. */
  begin(known, recording) {
    const { status, waiting } = recording.facts();
    this.queue = waiting || (status === "queued" && known.queue) || null;
    if (waiting && known.queue?.reason === waiting.reason) this.queue = known.queue;
    if (status === "queued") this.lease = known.lease;
    this.refresh(recording, Infinity);
  }

  /** @param {{event: string, data: any}} event  the newest one */
  take({ event, data }) {
    if (event === "gap") return;
    this.queue = event === "waiting" ? { reason: data.reason, retry_at: data.retry_at } : null;
    this.interrupted = "";
    this.lease = null;
  }

  /**
   * Reads reason and position until it begins, and whether its worker is alive while nothing comes. An answer that is
   * older than the newest event is not used.
   * @param {number} silence  ms since the newest event
   */
  async refresh(recording, silence) {
    const asks = () => ["queued", "in_progress"].includes(recording.facts().status);
    const runs = recording.facts().status === "in_progress" && !this.interrupted;
    const early = runs && (silence < QUIET || Date.now() - this.#asked < Math.min(PAUSE, silence / 5));
    if (this.#asking || !asks() || early) return;
    this.#asking = true;
    this.#asked = Date.now();
    const told = await ask(pathOf(this.id)).catch(() => null); // the next refresh tries again
    if (told?.queue) this.upstreams = await this.#lane(told).catch(() => this.upstreams);
    this.#asking = false;
    const last = recording.events.at(-1)?.id ?? "0-0";
    if (!told || !asks() || !notAfter(last, told.cursor)) return;
    this.queue = told.queue;
    this.lease = told.lease;
    this.interrupted = told.status === "queued" && told.attempt ? (told.reset_reason ?? "") : "";
    this.onchange();
  }

  /** Returns the upstreams that serve its model: those of the level of the queue in which it waits. */
  async #lane({ model, priority }) {
    this.#owner ??= (await ask(`/v1/models/${encodeURIComponent(model)}`)).owned_by;
    const { levels } = await ask("/v1/queue");
    const fitting = levels.filter((one) => one.priority === priority && one.upstreams.includes(this.#owner));
    const lanes = new Map(fitting.map(({ upstreams }) => [upstreams.join(), upstreams]));
    return lanes.size === 1 ? [...lanes.values()][0] : [this.#owner];
  }
}
