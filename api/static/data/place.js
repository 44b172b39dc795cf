// What a followed generation waits for: from its `waiting` events, and its position, which only a request tells.

import { notAfter } from "./cursors.js";
import { ask, pathOf } from "./gateway.js";

export class Place {
  /** @type {?{reason: string, retry_at: ?number, position?: ?number}} null while it does not wait */
  queue = null;
  /** Names of the upstreams that it waits for, as far as they are known. @type {string[]} */
  upstreams = [];
  #asking = false;
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
    this.refresh(recording);
  }

  /** @param {{event: string, data: any}} event  the newest one */
  take({ event, data }) {
    if (event !== "gap") this.queue = event === "waiting" ? { reason: data.reason, retry_at: data.retry_at } : null;
  }

  /**
   * Reads reason and position until it begins: between two tries a worker has it, and it waits for nothing. An answer
   * that is older than the newest event is not used.
   */
  async refresh(recording) {
    if (this.#asking || recording.facts().status !== "queued") return;
    this.#asking = true;
    const told = await ask(pathOf(this.id)).catch(() => null); // the next refresh tries again
    if (told?.queue) this.upstreams = await this.#lane(told).catch(() => this.upstreams);
    this.#asking = false;
    const last = recording.events.at(-1)?.id ?? "0-0";
    if (!told || recording.facts().status !== "queued" || !notAfter(last, told.cursor)) return;
    this.queue = told.queue;
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
