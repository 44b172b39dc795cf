// The timeline of a recording, as a strip and as a list of marks; and the player that moves through it.

import { duration, make, show } from "./page.js";
import { reasonOf } from "./waiting.js";

const SVG = "http://www.w3.org/2000/svg";
const MOST = 60; // maximum number of listed marks
const HEIGHT = 44; // of the strip
const BAND = 8; // height of the phases, at the bottom of the strip
const STEPS = 200; // resolution of the rate
const ENDS = new Set(["completed", "failed", "cancelled", "gone"]);

/** The phase that starts with each kind of mark. */
const PHASES = { created: "queued", started: "thinking", reset: "thinking", waiting: "busy", chunk: "streaming" };
const WORDS = {
  created: () => "queued",
  started: ({ data }) => `attempt ${data.attempt}`,
  reset: ({ data }) => `reset, attempt ${data.attempt}`,
  waiting: ({ data }) => `waiting (${reasonOf(data)})`,
  chunk: () => "first token",
};

/** The events of a recording that start a phase or end it. */
export class Marks {
  /** @type {{time: number, number: number, kind: string, text: string}[]} `number`: number of the event */
  all = [];
  #read = 0;
  #epoch = 0;

  /** Processes the new events. */
  update(recording) {
    if (recording.epoch !== this.#epoch) this.all.length = this.#read = 0;
    this.#epoch = recording.epoch;
    for (; this.#read < recording.length; this.#read++) {
      const event = recording.events[this.#read];
      const kind = event.event;
      if (kind === "chunk" && this.all.at(-1)?.kind === "chunk") continue;
      const text = WORDS[kind]?.(event) ?? kind;
      if (kind in WORDS || ENDS.has(kind)) this.#mark(recording.times[this.#read], kind, text);
    }
  }

  #mark(time, kind, text) {
    this.all.push({ time, number: this.#read, kind, text });
  }

  /** Returns the number of the event of the mark before (-1) or after (1) the first `count` events. */
  next(count, direction) {
    if (direction > 0) return this.all.find(({ number }) => number >= count)?.number;
    return this.all.findLast(({ number }) => number < count - 1)?.number;
  }
}

/** Draws the marks of a recording; calls `onpick(number)` when the mark of that event is clicked. */
export class Timeline {
  #drawn = 0; // number of events that were drawn

  constructor(strip, list, onpick) {
    Object.assign(this, { strip, list, onpick });
    this.rates = strip.appendChild(document.createElementNS(SVG, "path"));
    this.phases = strip.appendChild(document.createElementNS(SVG, "g"));
    this.cursor = strip.appendChild(document.createElementNS(SVG, "rect"));
    this.cursor.setAttribute("class", "cursor");
  }

  /** @param {import("../data/recording.js").Recording} recording  @param {number} position  unix ms */
  paint(marks, recording, position) {
    const { from, until } = recording;
    const scale = 1000 / Math.max(1, until - from);
    const phases = marks.filter(({ kind }) => kind in PHASES);
    const bars = this.phases.children;
    while (bars.length > phases.length) this.phases.lastElementChild.remove();
    for (const [number, { time, kind }] of phases.entries()) {
      const end = marks[marks.indexOf(phases[number]) + 1]?.time ?? until;
      const bar = bars[number] ?? this.phases.appendChild(document.createElementNS(SVG, "rect"));
      bar.setAttribute("class", PHASES[kind]);
      place(bar, (time - from) * scale, (end - time) * scale, HEIGHT - BAND, BAND);
    }
    place(this.cursor, (position - from) * scale - 1, 2, 0, HEIGHT);
    this.#flow(recording);
    this.#words(marks.slice(0, MOST), from);
  }

  /** Draws the rate of events above the phases. */
  #flow(recording) {
    const { from, until, length } = recording;
    if (length === this.#drawn) return;
    this.#drawn = length;
    const upTo = Array.from({ length: STEPS + 1 }, (_, step) => recording.countAt(from + ((until - from) * step) / STEPS));
    const counts = upTo.slice(1).map((count, step) => count - upTo[step]);
    const most = Math.max(1, ...counts);
    const top = (count) => (HEIGHT - BAND - ((HEIGHT - BAND) * 0.8 * count) / most).toFixed(1);
    const steps = counts.map((count, step) => `V${top(count)}H${((step + 1) * 1000) / STEPS}`);
    this.rates.setAttribute("d", `M0 ${HEIGHT - BAND}${steps.join("")}V${HEIGHT - BAND}Z`);
  }

  #words(marks, from) {
    while (this.list.children.length > marks.length) this.list.lastElementChild.remove();
    for (const [number, { time, number: event, kind, text }] of marks.entries()) {
      const item = this.list.children[number] ?? this.list.appendChild(make("li", {}, make("button")));
      const button = item.firstElementChild;
      item.dataset.phase = PHASES[kind] ?? kind;
      show(button, `${text} ${number ? `+${duration(time - from)}` : new Date(time).toLocaleTimeString()}`);
      button.onclick = () => this.onpick(event);
    }
  }
}

function place(bar, x, width, y, height) {
  const box = { x: x.toFixed(2), y, width: Math.max(0.5, width).toFixed(2), height };
  for (const [name, value] of Object.entries(box)) bar.setAttribute(name, value);
}

/** The position in a recording: at its end, following new events, or at a point in time, paused or playing. */
export class Player {
  /** @type {?number} unix ms; null: at the end */
  position = null;
  #exact = 0; // number of events, to select one of several at the same time
  #frame = 0;
  #last = 0;

  /** @param {import("../data/recording.js").Recording} recording  @param {() => void} onmove */
  constructor(recording, onmove) {
    Object.assign(this, { recording, onmove, speed: 1 });
  }

  get playing() {
    return this.#frame !== 0;
  }

  /** The number of events up to the position. */
  get count() {
    if (this.position === null) return this.recording.length;
    return this.#exact || this.recording.countAt(this.position);
  }

  /** unix ms */
  get time() {
    return this.position ?? this.recording.until;
  }

  seek(time) {
    this.#halt();
    this.position = time >= this.recording.until ? null : Math.max(time, this.recording.from);
    this.onmove();
  }

  /** Moves to right after an event. */
  seekTo(number) {
    this.#halt();
    this.position = this.recording.times[number];
    this.#exact = number + 1;
    this.onmove();
  }

  /** Moves by a number of events. */
  step(events) {
    const number = Math.min(Math.max(this.count - 1 + events, 0), this.recording.length - 1);
    if (number >= 0) this.seekTo(number);
  }

  #halt() {
    cancelAnimationFrame(this.#frame);
    this.#frame = this.#exact = 0;
  }

  /** Plays from the position; from the start of the first attempt if the position is the end. */
  play() {
    const first = this.recording.find("started");
    if (this.speed === Infinity) return this.end();
    this.position ??= first < 0 ? this.recording.from : this.recording.times[first];
    this.#exact = 0;
    this.#last = performance.now();
    this.#frame ||= requestAnimationFrame((now) => this.#step(now));
    this.onmove();
  }

  pause() {
    this.#halt();
    this.position ??= this.recording.until;
    this.onmove();
  }

  /** Moves to the end and follows new events. */
  end() {
    this.#halt();
    this.position = null;
    this.onmove();
  }

  #step(now) {
    this.#frame = 0;
    this.position += Math.max(0, now - this.#last) * this.speed;
    this.#last = now;
    if (this.position >= this.recording.until) return this.end();
    this.#frame = requestAnimationFrame((next) => this.#step(next));
    this.onmove();
  }
}
