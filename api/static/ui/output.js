// The text of a generation in the page: grows without a new layout, and shrinks when a replay goes back.

import { clone, show } from "./page.js";

const BLOCK = 8192; // characters

/**
 * A text that only grows, divided into blocks at line ends: a browser lays out the whole block to which text is added,
 * so with a single block each frame of a long answer would cost more than the one before.
 */
export class GrowingText {
  #node = null;

  constructor(parent) {
    this.parent = parent;
  }

  clear() {
    this.parent.replaceChildren();
    this.#node = null;
  }

  append(text) {
    for (let from = 0; from < text.length; ) {
      const room = BLOCK - (this.#node?.length ?? 0);
      let to = text.length;
      if (to - from > room) {
        to = text.lastIndexOf("\n", from + room) + 1;
        if (to <= from) to = text.indexOf("\n", from + Math.max(0, room)) + 1 || text.length;
      }
      this.#node ??= this.parent.appendChild(document.createElement("div")).appendChild(new Text());
      this.#node.appendData(text.slice(from, to));
      if (to < text.length) this.#node = null;
      from = to;
    }
  }
}

/** The parts of a recording's output, in order, each with its heading. */
export class Output {
  /** Whether the end is kept in view: until the reader scrolls up. */
  following = true;
  #place = 0; // scroll position
  #attempt = null;
  #text = (parent) => new GrowingText(parent);
  #shown = new Map(); // key of a part → { section, text, start, size }

  constructor(root) {
    this.root = root;
    root.addEventListener("scroll", () => this.#scrolled(root));
  }

  #scrolled({ scrollHeight, scrollTop, clientHeight }) {
    if (scrollHeight - scrollTop - clientHeight < 40) this.following = true;
    else if (scrollTop < this.#place) this.following = false;
    this.#place = scrollTop;
  }

  /**
   * Sets how texts are shown, from now on.
   * @param {(parent: HTMLElement, part: object) => {append(text: string): void, clear(): void}} text
   */
  showAs(text) {
    this.#text = text;
    this.#clear();
    this.#attempt = null;
  }

  /** Renders what is held back while a text grows. */
  settle() {
    for (const { text } of this.#shown.values()) text.settle?.();
  }

  /** Shows the output after the first `count` events, at the cost of the difference from what was shown last. */
  show(recording, count = recording.length) {
    const attempt = recording.attemptAt(count);
    if (attempt !== this.#attempt) this.#clear();
    this.#attempt = attempt;
    for (const part of attempt.parts.values()) this.#part(part, count);
    if (this.following) this.root.scrollTop = this.root.scrollHeight;
  }

  #clear() {
    this.root.replaceChildren();
    this.#shown.clear();
  }

  #part(part, count) {
    const size = part.size(count);
    let shown = this.#shown.get(part.key);
    if (!size) {
      shown?.section.remove();
      return this.#shown.delete(part.key);
    }
    shown ??= this.#begin(part);
    show(shown.section.firstElementChild, part.title(count));
    const start = part.start(size);
    if (size < shown.size || start !== shown.start) {
      shown.text.clear();
      shown.size = start;
    }
    shown.start = start;
    shown.text.append(part.pieces.slice(shown.size, size).join(""));
    shown.size = size;
  }

  #begin(part) {
    const { key } = part;
    const section = clone("part");
    section.dataset.key = key;
    section.classList.toggle("answer", part.isAnswer);
    const isLater = (other) => Number(other.dataset.key) > key;
    const last = this.root.lastElementChild; // a new part is nearly always the last
    const next = last && isLater(last) ? Array.from(this.root.children).find(isLater) : null;
    this.root.insertBefore(section, next);
    const shown = { section, text: this.#text(section.lastElementChild, part), start: 0, size: 0 };
    this.#shown.set(key, shown);
    return shown;
  }
}
