// Tokens per second of the visible generations.
//
// The cursor of a summary counts the events of the attempt, so one page of the list per second gives the rates of a
// hundred generations: 40 KB and two round trips to Redis, at any speed. Following them would transfer every token.

import { ask } from "../data/gateway.js";
import { parts } from "../data/cursors.js";

const KEPT = 30; // samples: half a minute
const PERIOD = 1000; // ms

export class Rates {
  #samples = new Map(); // id → { attempt, seq, at, rates }
  #timer = 0;
  #asked = 0;

  /**
   * @param {() => {ids: string[], after: string}} wanted  visible running generations, and the id before the first
   * @param {(summaries: object[]) => void} ontold
   */
  constructor(wanted, ontold) {
    Object.assign(this, { wanted, ontold });
  }

  start() {
    this.#timer ||= setInterval(() => this.#ask(), PERIOD);
  }

  stop() {
    clearInterval(this.#timer);
    this.#timer = 0;
  }

  /** Returns the rates of the last half minute, newest last. */
  of(id) {
    return this.#samples.get(id)?.rates ?? [];
  }

  async #ask() {
    const { ids, after } = this.wanted();
    for (const id of this.#samples.keys()) if (!ids.includes(id)) this.#samples.delete(id);
    if (!ids.length || this.#asked) return;
    this.#asked++;
    const sent = performance.now();
    const query = new URLSearchParams({ status: "in_progress", limit: 100, ...(after && { after }) });
    const page = await ask(`/v1/generations?${query}`).catch(() => null); // the next second tries again
    this.#asked--;
    if (!page) return;
    const at = (sent + performance.now()) / 2; // best estimate of the time of the count
    for (const { id, cursor } of page.data) if (ids.includes(id)) this.#sample(id, ...parts(cursor), at);
    this.ontold(page.data);
  }

  #sample(id, attempt, seq, at) {
    const before = this.#samples.get(id);
    if (before?.attempt !== attempt) return this.#samples.set(id, { attempt, seq, at, rates: [] });
    if (at - before.at < PERIOD / 2) return; // a late response, then two at once: the next one covers both
    before.rates.push(Math.max(0, (seq - before.seq) / ((at - before.at) / 1000)));
    if (before.rates.length > KEPT) before.rates.shift();
    Object.assign(before, { seq, at });
  }
}
