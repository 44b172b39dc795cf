// One generation as it happened: its events, and what was known and written after any number of them.

import { moment, parts } from "./page.js";

/** What each event tells, beside the text. */
const FACTS = {
  created: ({ model, created_at }) => ({ status: "queued", model, created: created_at }),
  started: ({ attempt }) => ({ status: "in_progress", attempt }),
  reset: ({ attempt, reason }) => ({
    ...{ status: "in_progress", attempt, gap: "", waiting: "", finish: "", usage: null },
    reset: `Begun again as attempt ${attempt} (${reason}). What was shown before is void.`,
  }),
  waiting: ({ reason, retry_at }) => ({
    waiting: `Waiting for the upstream (${reason}) until ${moment(retry_at).toLocaleTimeString()}.`,
  }),
  completed: ({ finish_reason, usage }) => ({ status: "completed", waiting: "", finish: finish_reason, usage }),
  failed: ({ error }) => ({ status: "failed", waiting: "", error: `${error.code ?? error.type}: ${error.message}` }),
  cancelled: ({ usage }) => ({ status: "cancelled", waiting: "", usage }),
  gap: ({ earliest }) => ({ gap: `History is missing: the log was trimmed, and goes on at ${earliest}.` }),
  gone: () => ({ status: "gone", waiting: "", error: "This generation was deleted." }),
};

/** How many of these sorted numbers are not above `value`. */
function upTo(numbers, value) {
  let [low, high] = [0, numbers.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** A piece of the output that has a heading of its own: which events added what. */
class Part {
  pieces = [];
  numbers = []; // of the event that added the piece
  names = [];

  constructor(key, title) {
    this.key = key;
    this.name(-1, title);
  }

  add(number, text) {
    this.pieces.push(text);
    this.numbers.push(number);
  }

  name(number, text) {
    this.names.push({ number, text });
  }

  /** How many of its pieces the first `count` events brought. */
  size(count) {
    return upTo(this.numbers, count - 1);
  }

  title(count) {
    return this.names.filter(({ number }) => number < count).map(({ text }) => text).join("");
  }
}

/** The output of one attempt, from event number `from` on. */
class Segment {
  parts = new Map();

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
  /** Counts how often all was forgotten. */
  epoch = 0;
  #counts = []; // chunks up to each event
  #facts = []; // after each event; the same object where nothing changed
  #segments = [new Segment(0)];
  #attempt = "";

  get length() {
    return this.events.length;
  }

  /**
   * @param {{id: string, event: string, data: any, at?: number}} event  `at`: ms since its attempt began
   * @param {number} now  when it came, unix ms, where nobody says
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

  /** The log is another one: all of it comes again. */
  #forget() {
    this.events.length = this.times.length = this.#facts.length = this.#counts.length = this.chunks = 0;
    this.#segments = [new Segment(0)];
    this.#attempt = "";
    this.epoch++;
  }

  #chunk(before, { choices, usage }, number) {
    this.chunks++;
    let { finish } = before;
    for (const choice of choices ?? []) {
      this.#add(choice, number);
      finish = choice.finish_reason || finish;
    }
    const same = before.status === "in_progress" && !before.waiting && finish === before.finish && !usage;
    return same ? before : { ...before, status: "in_progress", waiting: "", finish, ...(usage && { usage }) };
  }

  #add({ index = 0, delta }, number) {
    const segment = this.#segments.at(-1);
    const part = (place, title) => segment.part(index * 1e6 + place, index ? `${index + 1}. ${title}` : title);
    const reasoning = delta?.reasoning_content ?? delta?.reasoning;
    if (reasoning) part(0, "Reasoning").add(number, reasoning);
    if (delta?.content) part(1, "Answer").add(number, delta.content);
    if (delta?.refusal) part(2, "Refusal").add(number, delta.refusal);
    for (const call of delta?.tool_calls ?? []) {
      const place = 3 + (call.index ?? segment.parts.size); // a call without an index is whole
      const found = part(place, "Tool call: ");
      if (call.function?.name) found.name(number, call.function.name);
      found.add(number, call.function?.arguments ?? "");
    }
  }

  /** How many chunks are among the first `count` events, of all attempts. */
  chunksIn(count) {
    return this.#counts[count - 1] ?? 0;
  }

  /** What is known after the first `count` events. */
  facts(count = this.length) {
    return this.#facts[count - 1] ?? { status: "" };
  }

  /** The output after the first `count` events: that of the attempt which ran then. */
  segment(count = this.length) {
    return this.#segments.findLast(({ from }) => from < count) ?? this.#segments[0];
  }

  /** How many events had come at `time`. */
  countAt(time) {
    return upTo(this.times, time);
  }

  get from() {
    return this.times[0] ?? 0;
  }

  get until() {
    return this.times.at(-1) ?? 0;
  }

  /** Number of the first event of that name at or behind a number; -1. */
  find(name, from = 0) {
    return this.events.findIndex(({ event }, number) => number >= from && event === name);
  }
}

/** An attempt's number holds the time at which it began, in ms × 1024. */
function timeOf({ id, event, data, at }) {
  if (event === "created") return data.created_at * 1000;
  return at === undefined ? undefined : Math.floor(parts(id)[0] / 1024) + at;
}

/** Facts with what an event adds; the same where it adds nothing. An event we do not know is kept, and says nothing. */
function learn(before, { event, data }) {
  return FACTS[event] ? { ...before, ...FACTS[event](data) } : before;
}
