// The text of a generation, in the page: it grows without being laid out anew, and goes back when a replay does.

import { clone, show } from "./page.js";

const BLOCK = 8192; // characters

/**
 * A text that only grows. It is broken into blocks at line ends: a browser lays out the whole block to which something
 * is added, so with one block each frame of a long answer would cost more than the one before.
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

/** The parts of a recording's output, each under its heading, in their order. */
export class Output {
  /** Whether its end is kept in sight: until somebody reads further up. */
  following = true;
  #place = 0; // scrolled to
  #segment = null;
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

  /** As it was after the first `count` events. Costs what has changed since it was last shown. */
  show(recording, count = recording.length) {
    const segment = recording.segment(count);
    if (segment !== this.#segment) this.#clear();
    this.#segment = segment;
    for (const part of segment.parts.values()) this.#part(part, count);
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
    shown ??= this.#begin(part.key);
    show(shown.section.firstElementChild, part.title(count));
    const start = part.start(size);
    if (size < shown.size || start > shown.start) {
      shown.text.clear();
      shown.size = start;
    }
    shown.start = start;
    shown.text.append(part.pieces.slice(shown.size, size).join(""));
    shown.size = size;
  }

  #begin(key) {
    const section = clone("part");
    section.dataset.key = key;
    section.classList.toggle("answer", key % 1e6 === 1);
    const isLater = (other) => Number(other.dataset.key) > key;
    const last = this.root.lastElementChild; // what begins is nearly always the newest
    const next = last && isLater(last) ? Array.from(this.root.children).find(isLater) : null;
    this.root.insertBefore(section, next);
    const shown = { section, text: new GrowingText(section.lastElementChild), start: 0, size: 0 };
    this.#shown.set(key, shown);
    return shown;
  }
}
