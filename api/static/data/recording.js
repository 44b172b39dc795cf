// The recording of a generation: its events, and the facts and the output after any number of them.

import { Attempt, upTo } from "./attempt.js";
import { finishReason, isObject, objectsOf } from "./completion.js";
import { parts } from "./cursors.js";

const UNUSUAL = { least: 5000, factor: 20, sample: 200 }; // ms, × the median gap, latest gaps
const FIRST = 10_000; // ms without a first token

/** The facts that each event adds, apart from text. */
const FACTS = {
  created: ({ model, created_at }) => ({ status: "queued", model, created: created_at }),
  started: ({ attempt }) => ({ status: "in_progress", attempt, waiting: null }),
  reset: ({ attempt, reason }) => ({
    ...{ status: "in_progress", attempt, gap: "", waiting: null, finish: "", usage: null },
    reset: `Restarted as attempt ${attempt} (${reason}). The previous output was discarded.`,
  }),
  waiting: ({ reason, retry_at }) => ({ status: "queued", waiting: { reason, retry_at } }),
  completed: ({ finish_reason, usage }) => ({ ...ended("completed"), finish: finish_reason, usage }),
  failed: ({ error }) => ({ ...ended("failed"), error: `${error.code ?? error.type}: ${error.message}` }),
  cancelled: ({ usage }) => ({ ...ended("cancelled"), usage }),
  gap: ({ earliest }) => ({ gap: `History is missing: the log was trimmed and continues at ${earliest}.` }),
  gone: () => ({ status: "gone", waiting: null, error: "This generation was deleted." }),
};

function ended(status) {
  return { status, waiting: null, reset: "" };
}

const ENDED = new Set(["completed", "failed", "cancelled", "gone"]);

/** @typedef {{attempt: Attempt, chunks: number, first: ?number, rate: ?number, took: ?number}} Figures  times in ms */

export class Recording {
  /** @type {{id: string, event: string, data: any, at?: number}[]} */
  events = [];
  times = []; // unix ms, never backwards
  chunks = 0;
  /** How often the recording was started over. */
  epoch = 0;
  /** In their order; the first one has the events before the first attempt. @type {Attempt[]} */
  attempts = [waiting()];
  #created = 0; // unix ms
  #counts = []; // chunks up to each event
  #facts = []; // after each event; the same object where nothing changed

  get length() {
    return this.events.length;
  }

  /**
   * @param {{id: string, event: string, data: any, at?: number}} event  `at`: ms since the start of its attempt
   * @param {number} now  its time of arrival, unix ms, used if the event has no time
   */
  push(event, now) {
    if (event.id === "0-0" && event.event === "reset") return this.#forget();
    const number = this.length;
    if (event.event === "created") this.#created = event.data.created_at * 1000;
    const before = this.facts();
    const time = Math.max(this.times.at(-1) ?? 0, this.#timeOf(event, before) ?? now);
    this.events.push(event);
    this.times.push(time);
    if (["started", "reset", "chunk"].includes(event.event)) this.#begin(event, number, time);
    this.#facts.push(event.event === "chunk" ? this.#chunk(before, event.data, number) : learn(before, event));
    this.#counts.push(this.chunks);
  }

  /** Starts over: the log was replaced, and all of it comes again. */
  #forget() {
    this.events.length = this.times.length = this.#facts.length = this.#counts.length = this.chunks = 0;
    this.attempts = [waiting()];
    this.epoch++;
  }

  /**
   * Returns the time of an event. The number of an attempt contains its start time, in ms × 1024. A deletion after the
   * end is no part of what happened, and a gap lies between two events: they get the time of the event before.
   */
  #timeOf({ id, event, data, at }, before) {
    if (event === "created") return data.created_at * 1000;
    if (event === "gap" || (event === "gone" && ENDED.has(before.status))) at ??= NaN;
    if (Number.isNaN(at)) return this.times.at(-1);
    if (at === undefined) return undefined;
    const [attempt] = parts(id);
    return (attempt ? Math.floor(attempt / 1024) : this.#created) + at;
  }

  #begin({ id, data }, number, time) {
    const [attempt] = id.split("-");
    const last = this.attempts.at(-1);
    if (attempt === last.id) return;
    const began = Math.floor(Number(attempt) / 1024) || time;
    const ordinal = Number.isInteger(data?.attempt) ? data.attempt : last.number + 1; // its first event may be missing
    const known = { from: number, id: attempt, number: ordinal, began, before: this.chunks };
    this.attempts.push(new Attempt({ ...known, reason: data?.reason, upstream: data?.upstream }));
  }

  #chunk(before, chunk, number) {
    this.chunks++;
    this.attempts.at(-1).add(chunk, number);
    const finish = objectsOf(chunk?.choices).map(finishReason).findLast(Boolean) ?? before.finish;
    const usage = isObject(chunk?.usage) && { usage: chunk.usage };
    const same = before.status === "in_progress" && !before.waiting && finish === before.finish && !usage;
    return same ? before : { ...before, status: "in_progress", waiting: null, finish, ...usage };
  }

  /** Returns the facts after the first `count` events. */
  facts(count = this.length) {
    return this.#facts[count - 1] ?? { status: "" };
  }

  /** Returns the attempt that was running after the first `count` events. */
  attemptAt(count = this.length) {
    return this.attempts.findLast(({ from }) => from < count) ?? this.attempts[0];
  }

  /** Returns the figures, after the first `count` events, of the attempt that was running then. @returns {Figures} */
  figures(count = this.length) {
    const attempt = this.attemptAt(count);
    const chunks = (this.#counts[count - 1] ?? 0) - attempt.before;
    const [first, last] = [1, chunks].map((chunk) => this.#timeOfChunk(attempt.before + chunk));
    return {
      ...{ attempt, chunks },
      first: chunks && attempt.number ? first - attempt.began : null,
      rate: chunks > 1 && last > first ? ((chunks - 1) * 1000) / (last - first) : null,
      took: attempt.number ? this.times[count - 1] - attempt.began : null,
    };
  }

  /** Returns the time of a chunk, by its number over all attempts, from 1. */
  #timeOfChunk(number) {
    return this.times[upTo(this.#counts, number - 1)];
  }

  /** Returns the number of events that had happened when an attempt was over. */
  endOf(attempt) {
    return this.attempts[this.attempts.indexOf(attempt) + 1]?.from ?? this.length;
  }

  /** Returns the ms since the newest event. */
  silence(now) {
    return this.length ? Math.max(0, now - this.until) : 0;
  }

  /**
   * Returns the ms for which no token has come, if that is much longer than between the tokens so far; otherwise 0.
   * @param {number} now  unix ms
   */
  unusualSilence(now) {
    const silence = this.silence(now);
    if (this.facts().status !== "in_progress" || silence < UNUSUAL.least) return 0;
    const { chunks, attempt } = this.figures();
    if (!chunks) return now - attempt.began > FIRST ? now - attempt.began : 0;
    const gaps = [];
    for (let chunk = chunks; chunk > 1 && gaps.length < UNUSUAL.sample; chunk--) {
      gaps.push(this.#timeOfChunk(attempt.before + chunk) - this.#timeOfChunk(attempt.before + chunk - 1));
    }
    gaps.sort((a, b) => a - b);
    const usual = Math.max(UNUSUAL.factor * (gaps[gaps.length >> 1] ?? 0), gaps.at(-1) ?? 0);
    return silence > usual ? silence : 0;
  }

  /** Returns the number of events up to `time`. */
  countAt(time) {
    return upTo(this.times, time);
  }

  get from() {
    return this.times[0] ?? 0;
  }

  get until() {
    return this.times.at(-1) ?? 0;
  }

  /** Returns the number of the first event of that name, from a number on; -1 if there is none. */
  find(name, from = 0) {
    return this.events.findIndex(({ event }, number) => number >= from && event === name);
  }

  /** Returns the number of the event with that cursor; -1 if it is not there. */
  numberOf(cursor) {
    return this.events.findIndex(({ id, event }) => id === cursor && event !== "gap");
  }
}

function waiting() {
  return new Attempt({ from: 0, id: "0", number: 0, began: 0, before: 0 });
}

/** Returns the facts after an event; the same object if it adds nothing, as an unknown event does. */
function learn(before, { event, data }) {
  return FACTS[event] ? { ...before, ...FACTS[event](data) } : before;
}
