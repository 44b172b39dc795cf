// The upstreams: their calls now, their limits, their circuits; operators pause them and change their limits.

import { ask } from "../data/gateway.js";
import { change, isOperator, pause, resume } from "../data/operator.js";
import { confirmed } from "../ui/confirm.js";
import { byId, show } from "../ui/page.js";
import { Polled } from "../ui/polled.js";
import { Rows } from "../ui/rows.js";
import { clock } from "../ui/waiting.js";

const LIMITS = ["max_concurrency", "requests_per_minute", "tokens_per_minute"];
const CIRCUITS = { closed: "closed", open: "open: no calls", half_open: "half open: one call as a test" };
const FACTS = ["in_flight", "max_concurrency", "learned_concurrency", "waiting", "refused"];

const number = (value) => (value === null ? "none" : String(value));

export class UpstreamsView extends Polled {
  constructor() {
    super("upstreams");
    this.cards = new Rows(byId("upstreams"), "upstream", {
      key: ({ name }) => name,
      fill: (fields, upstream) => this.#fill(fields, upstream),
      begin: (row) => this.#begin(row),
    });
  }

  async load() {
    const { data } = await ask("/v1/upstreams");
    this.operator = await isOperator();
    this.cards.show(data);
  }

  #begin(row) {
    const { fields } = row;
    fields.pause.addEventListener("click", () => this.#pause(row.item));
    // Not at `toggle`, which comes later: it would overwrite what is typed at once.
    fields.summary.addEventListener("click", () => {
      if (!fields.edit.open) for (const name of LIMITS) fields[`set-${name}`].value = row.item[name] ?? "";
    });
    fields.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#change(row);
    });
  }

  #fill(fields, upstream) {
    const { name, circuit, retry_at, paused, in_flight, max_concurrency, learned_concurrency } = upstream;
    show(fields.name, name);
    for (const fact of FACTS) show(fields[fact], number(upstream[fact]));
    show(fields.rates, LIMITS.slice(1).map((limit) => number(upstream[limit])).join(" / "));
    const limit = Math.min(max_concurrency ?? Infinity, learned_concurrency ?? Infinity);
    show(fields.in_flight, Number.isFinite(limit) ? `${in_flight} of ${limit}` : `${in_flight}`);
    fields.meter.hidden = !Number.isFinite(limit);
    Object.assign(fields.meter, { max: Number.isFinite(limit) ? limit : 1, value: in_flight });
    fields.meter.ariaLabel = `Calls of ${name} in flight`;
    show(fields.circuit, CIRCUITS[circuit]);
    fields.circuit.dataset.circuit = circuit;
    show(fields.retry, retry_at ? clock(retry_at) : "–");
    fields.paused.hidden = !paused;
    fields.pause.hidden = fields.edit.hidden = !this.operator;
    show(fields.pause, paused ? "Resume" : "Pause");
    fields.pause.ariaLabel = `${paused ? "Resume" : "Pause"} ${name}`;
  }

  async #pause({ name, paused }) {
    const text = paused
      ? `Resume the upstream ${name}?`
      : `Pause the upstream ${name}? It gets no new calls until it is resumed; running ones continue.`;
    if (!(await confirmed(text, paused ? "Resume" : "Pause"))) return;
    await this.act(() => (paused ? resume({ upstream: name }) : pause({ upstream: name })));
  }

  /** Sends the limits that were changed; an empty one is removed, so that the configured one counts again. */
  async #change({ fields, item }) {
    const limits = {};
    for (const name of LIMITS) {
      const value = fields[`set-${name}`].value === "" ? null : Number(fields[`set-${name}`].value);
      if (value !== item[name]) limits[name] = value;
    }
    fields.edit.open = false;
    fields.summary.focus();
    if (Object.keys(limits).length) await this.act(() => change(item.name, limits));
  }
}
