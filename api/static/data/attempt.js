// One attempt of a recording: its output, in parts, and what is known of it.

import { ANSWER, CALLS, Completion } from "./completion.js";

const TITLES = ["Reasoning", "Answer", "Refusal"];

/** Returns how many of these sorted numbers are at most `value`. */
export function upTo(numbers, value) {
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
    this.isCall = key % 1e6 >= CALLS;
    this.isAnswer = key % 1e6 === ANSWER;
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

  text(count) {
    const size = this.size(count);
    return this.pieces.slice(this.start(size), size).join("");
  }
}

export class Attempt {
  /** @type {Map<number, Part>} */
  parts = new Map();
  #completion = new Completion();

  /**
   * @param {object} known
   * @param {number} known.from  number of its first event
   * @param {string} known.id  as in cursors; "0" before the first attempt
   * @param {number} known.number  from 1; 0 before the first attempt
   * @param {number} known.began  unix ms: when a worker took the generation for it
   * @param {number} known.before  number of chunks of earlier attempts
   * @param {string} [known.reason]  why it was necessary to start again
   * @param {string} [known.upstream]
   */
  constructor({ from, id, number, began, before, reason = "", upstream = "" }) {
    Object.assign(this, { from, id, number, began, before, reason, upstream });
  }

  /** Adds a chunk, the event of that number. */
  add(chunk, number) {
    for (const { choice, place, name, text, anew } of this.#completion.add(chunk)) {
      const part = this.#part(choice, place);
      if (name) part.name(number, name);
      if (text || place >= CALLS) part.add(number, text, anew);
    }
  }

  #part(choice, place) {
    const key = choice * 1e6 + place;
    const title = TITLES[place] ?? "Tool call: ";
    if (!this.parts.has(key)) this.parts.set(key, new Part(key, choice ? `${choice + 1}. ${title}` : title));
    return this.parts.get(key);
  }

  /** Returns the parts that the first `count` events have begun, in their order. @returns {Part[]} */
  shown(count) {
    return [...this.parts.values()].filter((part) => part.size(count)).toSorted((a, b) => a.key - b.key);
  }

  /** Returns its whole output as a text, with headings if it is not only an answer. */
  text(count = Infinity) {
    const parts = this.shown(count);
    if (parts.every(({ isAnswer }) => isAnswer) && parts.length < 2) return parts[0]?.text(count) ?? "";
    return parts.map((part) => `## ${part.title(count)}\n\n${part.text(count)}`).join("\n\n");
  }
}
