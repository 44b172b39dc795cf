// The recording of a generation: its events, and the facts and the output after any number of them.

import { CALLS, Completion, finishReason, isObject, objectsOf } from "./completion.js";
import { parts } from "./cursors.js";

const TITLES = ["Reasoning", "Answer", "Refusal"];

/** The facts that each event adds, apart from text. */
const FACTS = {
  created: ({ model, created_at }) => ({ status: "queued", model, created: created_at }),
  started: ({ attempt }) => ({ status: "in_progress", attempt, waiting: null }),
  reset: ({ attempt, reason }) => ({
    ...{ status: "in_progress", attempt, gap: "", waiting: null, finish: "", usage: null },
    reset: `Restarted as attempt ${attempt} (${reason}). The previous output was discarded.`,
  }),
  waiting: ({ reason, retry_at }) => ({ status: "queued", waiting: { reason, retry_at } }),
  completed: ({ finish_reason, usage }) => ({ status: "completed", waiting: null, finish: finish_reason, usage }),
  failed: ({ error }) => ({ status: "failed", waiting: null, error: `${error.code ?? error.type}: ${error.message}` }),
  cancelled: ({ usage }) => ({ status: "cancelled", waiting: null, usage }),
  gap: ({ earliest }) => ({ gap: `History is missing: the log was trimmed and continues at ${earliest}.` }),
  gone: () => ({ status: "gone", waiting: null, error: "This generation was deleted." }),
};

/** Returns how many of these sorted numbers are at most `value`. */
function upTo(numbers, value) {
  let [low, high] = [0, numbers.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** A part of the output with its own heading: the pieces of text, and the events that added them. */
class Part {
  pieces = [];
  numbers = []; // of the event that added the piece
  names = [];
  #starts = []; // numbers of the pieces that replace all before them

  constructor(key, title) {
    this.key = key;
    this.name(-1, title);
  }

  add(number, text, anew = false) {
    if (anew) this.#starts.push(this.pieces.length);
    this.pieces.push(text);
    this.numbers.push(number);
  }

  name(number, text) {
    this.names.push({ number, text });
  }

  /** Returns how many of its pieces the first `count` events added. */
  size(count) {
    return upTo(this.numbers, count - 1);
  }

  /** Returns the first valid piece when it has `size` pieces. */
  start(size) {
    return this.#starts[upTo(this.#starts, size - 1) - 1] ?? 0;
  }

  title(count) {
    return this.names.filter(({ number }) => number < count).map(({ text }) => text).join("");
  }
}

/** The output of one attempt, from event number `from` on. */
class Segment {
  parts = new Map();
  completion = new Completion();

  constructor(from) {
    this.from = from;
  }

  part(key, title) {
    if (!this.parts.has(key)) this.parts.set(key, new Part(key, title));
    return this.parts.get(key);
  }
}

export class Recording {
  /** @type {{id: string, event: string, data: any}[]} */
  events = [];
  times = []; // unix ms, never backwards
  chunks = 0;
  /** How often the recording was started over. */
  epoch = 0;
  #counts = []; // chunks up to each event
  #facts = []; // after each event; the same object where nothing changed
  #segments = [new Segment(0)];
  #attempt = "";

  get length() {
    return this.events.length;
  }

  /**
   * @param {{id: string, event: string, data: any, at?: number}} event  `at`: ms since the start of its attempt
   * @param {number} now  its time of arrival, unix ms, used if the event has no time
   */
  push(event, now) {
    if (event.id === "0-0") this.#forget();
    const [attempt] = event.id.split("-");
    const number = this.length;
    this.events.push(event);
    this.times.push(Math.max(this.times.at(-1) ?? 0, timeOf(event) ?? now));
    if (["reset", "chunk"].includes(event.event) && attempt !== this.#attempt) {
      this.#attempt = attempt;
      this.#segments.push(new Segment(number));
    }
    const before = this.#facts.at(-1) ?? { status: "" };
    this.#facts.push(event.event === "chunk" ? this.#chunk(before, event.data, number) : learn(before, event));
    this.#counts.push(this.chunks);
  }

  /** Starts over: the log was replaced, and all of it comes again. */
  #forget() {
    this.events.length = this.times.length = this.#facts.length = this.#counts.length = this.chunks = 0;
    this.#segments = [new Segment(0)];
    this.#attempt = "";
    this.epoch++;
  }

  #chunk(before, chunk, number) {
    this.chunks++;
    const segment = this.#segments.at(-1);
    for (const addition of segment.completion.add(chunk)) add(segment, addition, number);
    const finish = objectsOf(chunk?.choices).map(finishReason).findLast(Boolean) ?? before.finish;
    const usage = isObject(chunk?.usage) && { usage: chunk.usage };
    const same = before.status === "in_progress" && !before.waiting && finish === before.finish && !usage;
    return same ? before : { ...before, status: "in_progress", waiting: null, finish, ...usage };
  }

  /** Returns the number of chunks among the first `count` events, over all attempts. */
  chunksIn(count) {
    return this.#counts[count - 1] ?? 0;
  }

  /** Returns the facts after the first `count` events. */
  facts(count = this.length) {
    return this.#facts[count - 1] ?? { status: "" };
  }

  /** Returns the output after the first `count` events: that of the attempt which was running then. */
  segment(count = this.length) {
    return this.#segments.findLast(({ from }) => from < count) ?? this.#segments[0];
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
}

/** Returns the time of an event. The number of an attempt contains its start time, in ms × 1024. */
function timeOf({ id, event, data, at }) {
  if (event === "created") return data.created_at * 1000;
  return at === undefined ? undefined : Math.floor(parts(id)[0] / 1024) + at;
}

/** @param {import("./completion.js").Addition} addition  @param {number} number  of the event that brought it */
function add(segment, { choice, place, name, text, anew }, number) {
  const title = TITLES[place] ?? "Tool call: ";
  const part = segment.part(choice * 1e6 + place, choice ? `${choice + 1}. ${title}` : title);
  if (name) part.name(number, name);
  if (text || place >= CALLS) part.add(number, text, anew);
}

/** Returns the facts after an event; the same object if it adds nothing, as an unknown event does. */
function learn(before, { event, data }) {
  return FACTS[event] ? { ...before, ...FACTS[event](data) } : before;
}
