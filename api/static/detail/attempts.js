// The attempts of a generation: a table of their figures, and two of them side by side with their differences.

import { duration, make, rate, show } from "../ui/page.js";
import { Rows } from "../ui/rows.js";
import { differences } from "./diff.js";

const ENDS = { worker_lost: "worker lost", worker_stopped: "worker stopped", upstream_error: "upstream failed" };
const PAUSE = 1000; // ms between two comparisons while an attempt grows
const LABELS = { same: null, removed: "del", added: "ins" };

export class Attempts {
  #shown = ["", ""]; // the two texts that are compared
  #count = 0; // number of attempts in the menus
  #compared = 0; // time of the latest comparison, ms

  /**
   * @param {Record<string, HTMLElement>} fields  of the page
   * @param {import("../data/recording.js").Recording} recording
   * @param {(number: number) => void} onpick  called with the number of an event, the last one of a picked attempt
   */
  constructor(fields, recording, onpick) {
    Object.assign(this, { fields, recording, onpick });
    this.rows = new Rows(fields["attempt-rows"], "attempt", {
      key: ({ id }) => id,
      fill: (row, attempt) => this.#fill(row, attempt),
      begin: (row) => row.fields.pick.addEventListener("click", () => this.#pick(row.item)),
    });
    fields.compare.addEventListener("click", () => this.open(fields.comparison.hidden));
    fields["compare-close"].addEventListener("click", () => this.open(false));
    for (const side of ["left", "right"]) fields[side].addEventListener("input", () => this.#compare());
    fields.comparison.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation(); // it would leave the page
      this.open(false);
    });
  }

  get #all() {
    return this.recording.attempts.filter(({ number }) => number);
  }

  /** @param {number} count  events up to the position */
  paint(count) {
    const attempts = this.#all;
    this.fields.attempts.hidden = attempts.length < 2;
    if (attempts.length < 2) return this.open(false);
    this.current = this.recording.attemptAt(count);
    this.rows.show(attempts);
    if (!this.fields.comparison.hidden && performance.now() - this.#compared > PAUSE) this.#compare();
  }

  #fill(row, attempt) {
    const { recording } = this;
    const end = recording.endOf(attempt);
    const next = recording.attempts[recording.attempts.indexOf(attempt) + 1];
    const { first, rate: speed, chunks } = recording.figures(end);
    show(row.pick, String(attempt.number));
    row.pick.ariaLabel = `Show attempt ${attempt.number}`;
    row.pick.ariaPressed = String(attempt === this.current);
    row.pick.title = [attempt.upstream, new Date(attempt.began).toLocaleTimeString()].filter(Boolean).join(", ");
    show(row["attempt-first"], first === null ? "–" : duration(first));
    show(row["attempt-rate"], speed ? rate(speed) : "–");
    show(row["attempt-chunks"], String(chunks));
    const status = recording.facts().status.replace("_", " ");
    show(row["attempt-end"], next ? (ENDS[next.reason] ?? next.reason) : status);
  }

  #pick(attempt) {
    this.open(false);
    this.onpick(this.recording.endOf(attempt) - 1);
  }

  /** Opens or closes the comparison: first of the last two attempts. */
  open(on) {
    const { fields } = this;
    if (fields.comparison.hidden === !on) return;
    fields.comparison.hidden = !on;
    fields.reading.hidden = on;
    fields.compare.ariaPressed = String(on);
    if (!on) return fields.compare.focus();
    this.#count = 0;
    this.#compare();
    fields.left.focus();
  }

  #menus() {
    const attempts = this.#all;
    if (attempts.length === this.#count) return;
    for (const [side, offset] of [["left", 2], ["right", 1]]) {
      const menu = this.fields[side];
      const chosen = this.#count ? menu.value : attempts.at(-offset).id;
      menu.replaceChildren(...attempts.map(({ id, number }) => new Option(`Attempt ${number}`, id)));
      menu.value = chosen;
    }
    this.#count = attempts.length;
  }

  #compare() {
    const { fields } = this;
    this.#compared = performance.now();
    this.#menus();
    const texts = ["left", "right"].map((side) => this.#all.find(({ id }) => id === fields[side].value)?.text() ?? "");
    if (texts.every((text, side) => text === this.#shown[side]) && fields["left-text"].hasChildNodes()) return;
    this.#shown = texts;
    const pieces = differences(...texts);
    for (const [side, other] of [["left", "added"], ["right", "removed"]]) {
      const nodes = pieces.filter(({ kind }) => kind !== other).map(({ kind, text }) => marked(kind, text));
      if (!nodes.length) nodes.push(make("span", { className: "hint" }, "No output."));
      fields[`${side}-text`].replaceChildren(...nodes);
    }
    const count = (kind) => pieces.filter((piece) => piece.kind === kind && piece.text.trim()).length;
    const [removed, added] = [count("removed"), count("added")];
    const told = `${removed} removed, ${added} added`;
    show(fields.differences, texts[0] === texts[1] ? "The same text" : told);
  }
}

const marked = (kind, text) => (LABELS[kind] ? make(LABELS[kind], {}, text) : new Text(text));

