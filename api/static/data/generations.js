// The generations that the page knows: pages of the list, and the changes since.

import { conditionsOf, createdMs, queryOf } from "./conditions.js";
import { notAfter } from "./cursors.js";
import { oncePerFrame } from "./frames.js";
import { ENDINGS, UNAUTHORISED, ask, authorization, deny, now } from "./gateway.js";
import { EventStream } from "./sse.js";

const PAGE = 100;
const MOST = 2000; // generations kept by default; loading older pages raises it

/** @typedef {{id: string, status: string, model: string, created_at: number, started_at: ?number,
 *   first_token_at: ?number, ended_at: ?number, attempt: number, cursor: string, usage: ?object, error: ?object,
 *   metadata: Record<string, string>, prompt: ?string, tenant?: string}} Summary */

/** @typedef {import("./conditions.js").Filter} Filter */

export class Generations {
  /** @type {Map<string, Summary>} */
  known = new Map();
  /** @type {string[]} newest first, in the order of their ids */
  order = [];
  /** Query of a filter → whether there are older generations, and the id after which they follow. */
  #frontiers = new Map();
  #gone = new Set();
  #stream = null;
  #changed = new Set();
  #most = MOST;

  /**
   * @param {(changed: Set<string>) => void} onchange  at most once a frame
   * @param {(state: string, message?: string) => void} onstate  of the connection
   */
  constructor(onchange, onstate) {
    this.onstate = onstate;
    this.#notify = oncePerFrame(() => {
      const changed = this.#changed;
      this.#changed = new Set();
      onchange(changed);
    });
  }

  #notify;

  /** Whether all generations of that filter are loaded. */
  complete(filter) {
    return this.#frontiers.get(queryOf(filter))?.more === false;
  }

  loaded(filter) {
    return this.#frontiers.has(queryOf(filter));
  }

  /** The creation time, unix ms, down to which all generations of that filter are loaded. */
  reached(filter) {
    const { after } = this.#frontiers.get(queryOf(filter)) ?? {};
    return after ? createdMs(after) : now();
  }

  // --- live changes ---

  watch() {
    this.#stream ??= new EventStream({
      url: () => "/v1/activity?after=latest",
      headers: authorization,
      onmessage: ({ type, data }) => this.#take(type, JSON.parse(data)),
      onstate: (state, refusal) => {
        // The list has what happened before the stream started, and while the gateway refuses a stream.
        if (state === "live" || (state === "reconnecting" && refusal)) this.refresh();
        if (refusal?.status === UNAUTHORISED) deny();
        this.onstate(state, refusal?.message);
      },
    });
  }

  unwatch() {
    this.#stream?.stop();
    this.#stream = null;
  }

  #take(event, told) {
    if (event === "gap") this.refresh();
    else if (event === "gone") this.remove(told.id);
    else this.upsert(told, event === "queued");
  }

  /** Stores a summary unless a newer one is known: a page may have been read before a change came by the stream. */
  upsert(told, handedBack = false) {
    const { id } = told;
    const before = this.known.get(id);
    if (this.#gone.has(id) || (before && ENDINGS.has(before.status) && !ENDINGS.has(told.status))) return;
    if (before && !handedBack && before.cursor !== told.cursor && notAfter(told.cursor, before.cursor)) return;
    this.known.set(id, told);
    if (!before) this.order.splice(this.#place(id), 0, id);
    this.#changed.add(id);
    this.#notify();
    if (this.order.length > this.#most) this.#trim();
  }

  /** Removes a generation that was deleted. */
  remove(id) {
    this.#gone.add(id);
    this.#drop(id);
  }

  #drop(id) {
    if (!this.known.delete(id)) return;
    this.order.splice(this.order.indexOf(id), 1);
    this.#changed.add(id);
    this.#notify();
  }

  /** Returns the position of an id in the order. */
  #place(id) {
    let [low, high] = [0, this.order.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.order[middle] > id) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #trim() {
    for (const id of this.order.splice(this.#most)) {
      this.known.delete(id);
      this.#changed.add(id);
    }
    this.#frontiers = new Map([["", { more: true, after: this.order.at(-1) }]]);
  }

  // --- pages ---

  /** Loads the next page of older generations. Throws a Refusal. */
  async more(filter = {}) {
    const query = queryOf(filter);
    const { after = "" } = this.#frontiers.get(query) ?? {};
    const { data, has_more, last_id } = await this.#page(conditionsOf(filter), after);
    this.#most = Math.max(this.#most, this.order.length + data.length);
    for (const told of data) this.upsert(told);
    this.#frontiers.set(query, { more: has_more, after: last_id ?? data.at(-1)?.id ?? after });
    this.#notify();
  }

  /** Returns up to `most` generations of a filter from the gateway, newest first. Throws a Refusal. */
  async find(filter, most) {
    const found = [];
    for (let [after, more] = ["", true]; more && found.length < most; ) {
      const page = await this.#page(conditionsOf(filter), after);
      found.push(...page.data);
      more = page.has_more;
      after = page.last_id ?? found.at(-1)?.id ?? "";
    }
    return found.slice(0, most);
  }

  /** Returns a page of those that wait. Throws a Refusal. */
  async waiting(after = "") {
    return (await this.#page({ status: "queued" }, after)).data;
  }

  /** Reloads what is shown, to find changes and deletions that were missed. */
  async refresh() {
    const oldest = this.#frontiers.get("")?.after;
    let after = "";
    try {
      do {
        const { data, has_more } = await this.#page({}, after);
        const last = has_more ? (data.at(-1)?.id ?? after) : "";
        const there = new Set(data.map(({ id }) => id));
        const missing = this.order.filter((id) => (!after || id < after) && id > last && !there.has(id));
        for (const id of missing) if (!this.#fresh(id)) this.#drop(id);
        for (const told of data) this.upsert(told);
        after = last;
        if (oldest && last > oldest) continue;
        this.#frontiers.set("", { more: has_more, after: last || data.at(-1)?.id || "" });
      } while (oldest && after > oldest);
    } catch {
      return; // the stream reports that the gateway is away, and reloads when it is back
    }
    this.#notify();
  }

  /** Whether it may have been created while the list was read. */
  #fresh(id) {
    return Date.now() / 1000 - this.known.get(id).created_at < 10;
  }

  #page(conditions, after) {
    return ask(`/v1/generations?${new URLSearchParams({ limit: PAGE, ...conditions, ...(after && { after }) })}`);
  }
}
