// A chart of the last minutes: lines over time, one for each series. Its figures are also in a table of the page.

import { make, show } from "./page.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 600;
const HEIGHT = 120; // with room for the lines' width at the top and the bottom
const EDGE = 3;

const draw = (parent, tag, attributes) => {
  const node = parent.appendChild(document.createElementNS(SVG, tag));
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
};

export const minuteOf = ({ at }) => new Date(at * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });

/**
 * `read` returns the value of a row, null if there is none; `draw` the one to draw, if that is another one.
 * @typedef {{name: string, read: (row: any) => ?number, draw?: (row: any) => ?number}} Series
 */

export class Chart {
  #rows = [];
  #most = 1;
  #chosen = null; // number of the row under the pointer

  /**
   * @param {HTMLElement} parent  @param {string} title  @param {Series[]} series
   * @param {(value: number) => string} format  @param {(row: ?number) => void} onpoint  the row under the pointer
   */
  constructor(parent, title, series, format, onpoint) {
    Object.assign(this, { title, series, format });
    this.top = make("span", { className: "hint number" });
    this.legend = make("span", { className: "legend line" });
    this.time = make("span", { className: "hint number" });
    this.values = series.map(({ name }, number) => {
      const value = make("b", { className: "number" });
      const key = make("i", { className: `key key-${number}`, ariaHidden: "true" });
      this.legend.append(make("span", {}, key, `${name} `, value));
      return value;
    });
    this.picture = document.createElementNS(SVG, "svg");
    this.picture.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.picture.setAttribute("preserveAspectRatio", "none");
    this.picture.setAttribute("role", "img");
    draw(this.picture, "path", { class: "base", d: `M0 ${HEIGHT - EDGE}H${WIDTH}M0 ${HEIGHT / 2}H${WIDTH}M0 ${EDGE}H${WIDTH}` });
    this.cursor = draw(this.picture, "path", { class: "cursor" });
    this.lines = series.map((_, number) => [
      draw(this.picture, "path", { class: `line-${number}` }),
      draw(this.picture, "path", { class: `line-${number} partial` }),
    ]);
    this.ends = [make("span"), make("span")];
    const heading = make("figcaption", {}, make("h3", { textContent: title }), this.legend, this.time);
    const foot = make("div", { className: "ends hint number", ariaHidden: "true" }, ...this.ends);
    parent.append(make("figure", { className: "chart" }, heading, this.top, this.picture, foot));
    this.picture.addEventListener("pointermove", ({ offsetX }) => onpoint(this.#rowAt(offsetX)));
    this.picture.addEventListener("pointerleave", () => onpoint(null));
  }

  #rowAt(x) {
    const share = x / this.picture.getBoundingClientRect().width;
    return Math.max(0, Math.min(this.#rows.length - 1, Math.round(share * (this.#rows.length - 1))));
  }

  /** @param {object[]} rows  oldest first; the last one is not over */
  show(rows) {
    this.#rows = rows;
    const columns = this.series.map(({ read, draw = read }) => rows.map(draw));
    this.#most = Math.max(0, ...columns.flat().filter((value) => value !== null)) || 1;
    show(this.top, this.format(this.#most));
    for (const [number, column] of columns.entries()) {
      const [line, partial] = this.lines[number];
      line.setAttribute("d", this.#path(column.slice(0, -1), 0));
      partial.setAttribute("d", this.#path(column.slice(-2), Math.max(0, column.length - 2)));
    }
    if (rows.length) show(this.ends[0], minuteOf(rows[0]));
    show(this.ends[1], "now");
    this.#label(this.series.map(({ read }) => rows.map(read)));
    this.point(this.#chosen);
  }

  #x(number) {
    return this.#rows.length > 1 ? (number * WIDTH) / (this.#rows.length - 1) : WIDTH;
  }

  /** A line through the values, interrupted where there is none; a dot for one alone. */
  #path(values, first) {
    let path = "";
    let drawn = false;
    for (const [number, value] of values.entries()) {
      if (value !== null) {
        const y = HEIGHT - EDGE - ((HEIGHT - 2 * EDGE) * value) / this.#most;
        path += `${drawn ? "L" : "M"}${this.#x(first + number).toFixed(1)} ${y.toFixed(1)}${drawn ? "" : "h0.01"}`;
      }
      drawn = value !== null;
    }
    return path;
  }

  #label(columns) {
    const told = columns.map((column, number) => {
      const known = column.filter((value) => value !== null);
      const most = known.length ? this.format(Math.max(...known)) : "none";
      return `${this.series[number].name}: at most ${most}`;
    });
    this.picture.ariaLabel = `${this.title} over ${this.#rows.length} minutes. ${told.join("; ")}.`;
  }

  /** Shows the values of a minute; null: of the last one that is over. */
  point(number) {
    this.#chosen = number;
    const row = this.#rows[number ?? this.#rows.length - 2] ?? this.#rows.at(-1);
    if (!row) return;
    for (const [index, { read }] of this.series.entries()) {
      const value = read(row);
      show(this.values[index], value === null ? "–" : this.format(value));
    }
    show(this.time, minuteOf(row));
    this.cursor.setAttribute("d", number === null ? "" : `M${this.#x(number).toFixed(1)} 0V${HEIGHT}`);
  }
}
