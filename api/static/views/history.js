// The last hour, by minute: generations, first tokens, tokens per second, the queue; and the errors, with a sample.

import { ask, now } from "../data/gateway.js";
import { Chart, minuteOf } from "../ui/chart.js";
import { age, byId, duration, make, moment, show, tell } from "../ui/page.js";
import { Polled } from "../ui/polled.js";
import { Rows } from "../ui/rows.js";

const PERIOD = 5000; // ms
const FILTERS = ["minutes", "model", "upstream"];
const USUAL = "60"; // minutes
const EARLY = 20; // s

const ended = ({ completed, failed, cancelled }) => completed + failed + cancelled;
const whole = (value) => String(Math.round(value));
const rate = (value) => (value < 10 ? value.toFixed(1) : value.toFixed(0));
const seconds = (value) => duration(value * 1000);

/** Estimates a count of the minute that is not over, drawn with dashes; not in its first seconds. */
const estimated = (read) => (row) => {
  if (row.seconds >= 60 || read(row) === null) return read(row);
  return row.seconds < EARLY ? null : (read(row) * 60) / row.seconds;
};
const counted = (name, read) => ({ name, read, draw: estimated(read) });
const ofMinute = ({ seconds, tokens_per_second }) => (seconds < EARLY ? null : tokens_per_second);

/** The charts, and the columns of the table: title, format, series. */
const CHARTS = [
  ["Generations per minute", whole, [
    counted("created", ({ created }) => created),
    counted("ended", ended),
    counted("failed", ({ failed }) => failed),
  ]],
  ["Time to first token", seconds, [
    { name: "p50", read: ({ first_token }) => first_token.p50 },
    { name: "p95", read: ({ first_token }) => first_token.p95 },
  ]],
  ["Tokens per second", rate, [
    { name: "tokens/s", read: ({ tokens_per_second }) => tokens_per_second, draw: ofMinute },
  ]],
  ["Queue depth", whole, [{ name: "waiting", read: ({ queue_depth }) => queue_depth }]],
];
const COLUMNS = CHARTS.flatMap(([, format, series]) => series.map((one) => ({ ...one, format })));

export class HistoryView extends Polled {
  constructor() {
    super("history", PERIOD);
    const point = (number) => this.charts.forEach((chart) => chart.point(number));
    this.charts = CHARTS.map(([title, format, series]) => new Chart(byId("history-charts"), title, series, format, point));
    this.filters = Object.fromEntries(FILTERS.map((name) => [name, byId(`history-${name}`)]));
    for (const filter of Object.values(this.filters)) filter.addEventListener("input", () => this.#filtered());
    this.errors = new Rows(byId("history-errors"), "history-error", {
      key: ({ code, model, upstream }) => JSON.stringify([code, model, upstream]),
      fill: (fields, error) => this.#error(fields, error),
    });
    const names = ["Minute", ...COLUMNS.map(({ name }) => name)];
    byId("history-columns").append(...names.map((name) => make("th", { scope: "col", textContent: name })));
    byId("history-table").addEventListener("toggle", () => this.#table());
  }

  /** The filters, as in the address of the page. */
  get query() {
    const set = FILTERS.map((name) => [name, this.filters[name].value]);
    return new URLSearchParams(set.filter(([name, value]) => value && (name !== "minutes" || value !== USUAL))).toString();
  }

  /** Called with the address's filters when the page is opened. */
  open(query) {
    const wanted = new URLSearchParams(query);
    for (const name of ["model", "upstream"]) this.#offer(name, [], wanted.get(name) ?? "");
    this.filters.minutes.value = wanted.get("minutes") ?? USUAL;
    if (this.filters.minutes.selectedIndex === -1) this.filters.minutes.value = USUAL;
  }

  #filtered() {
    history.replaceState(null, "", `#/history${this.query && `?${this.query}`}`);
    this.refresh();
  }

  async load() {
    const { query } = this;
    const told = await ask(`/v1/history?${query}`);
    if (query !== this.query) return; // another filter was chosen meanwhile, and is read next
    this.rows = told.data;
    for (const chart of this.charts) chart.show(told.data);
    this.#offer("model", told.models, this.filters.model.value);
    this.#offer("upstream", told.upstreams, this.filters.upstream.value);
    this.#totals(told.total);
    this.#table();
    this.errors.show(told.errors);
    byId("history-errors-table").hidden = !told.errors.length;
    tell(byId("history-state"), told.errors.length ? "" : "No errors in this time.");
  }

  /** Fills a menu, keeping its value. */
  #offer(name, values, value) {
    const menu = this.filters[name];
    const known = Array.from(menu.options, (option) => option.value).filter(Boolean);
    const wanted = [...new Set([...values, ...(value ? [value] : [])])].toSorted();
    if (values.length || value !== menu.value) {
      if (known.join("\n") !== wanted.join("\n")) menu.replaceChildren(menu.options[0], ...wanted.map((one) => new Option(one)));
    }
    menu.value = value;
  }

  #totals(total) {
    const { created, completed, failed, cancelled, first_token, tokens_per_second, queue_depth } = total;
    const numbers = { created, completed, failed, cancelled, queue_depth };
    for (const [name, value] of Object.entries(numbers)) show(byId(`history-${name}`), value === null ? "–" : String(value));
    const times = [first_token.p50, first_token.p95].map((value) => (value === null ? "–" : seconds(value)));
    show(byId("history-first"), times.join(" / "));
    show(byId("history-tokens"), rate(tokens_per_second));
  }

  /** The figures as a table, newest first, while it is open. */
  #table() {
    if (!byId("history-table").open || !this.rows) return;
    const lines = this.rows.toReversed().map((row) => {
      const cells = COLUMNS.map(({ name, read, format }) => {
        const cell = make("td", { textContent: read(row) === null ? "–" : format(read(row)) });
        cell.dataset.label = name;
        return cell;
      });
      return make("tr", {}, make("th", { scope: "row", textContent: minuteOf(row) }), ...cells);
    });
    byId("history-rows").replaceChildren(...lines);
  }

  #error(fields, { code, model, upstream, failed, returned, last_at, sample }) {
    show(fields.code, code);
    show(fields.model, model ?? "–");
    show(fields.upstream, upstream ?? "–");
    show(fields.failed, String(failed));
    show(fields.returned, String(returned));
    show(fields.last, `${age(Math.max(0, now() / 1000 - last_at))} ago`);
    fields.last.title = moment(last_at).toLocaleString();
    fields.sample.href = `#/${sample}`;
    show(fields.sample, `…${sample.slice(-6)}`);
    fields.sample.ariaLabel = `Sample …${sample.slice(-6)}`;
    const filters = Object.entries({ status: "failed", model, code, upstream }).filter(([, value]) => value);
    fields.link.hidden = !failed;
    fields.link.href = `#/?${new URLSearchParams(filters)}`;
    fields.link.ariaLabel = `List ${code} of ${[model, upstream].filter(Boolean).join(", ") || "further models"}`;
  }
}
