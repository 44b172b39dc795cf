// The latest failures, grouped by error code, model and upstream.

import { ask, now } from "../data/gateway.js";
import { age, byId, moment, show, tell } from "../ui/page.js";
import { Polled } from "../ui/polled.js";
import { Rows } from "../ui/rows.js";

const LATEST = 100;

/** @typedef {{code: string, model: string, upstream: string, count: number, newest: object}} Group */

/** @param {object[]} failed  newest first @returns {Group[]} the largest first */
function grouped(failed) {
  const groups = new Map();
  for (const one of failed) {
    const [code, model, upstream] = [one.error?.code ?? "", one.model, one.upstream ?? ""];
    const key = JSON.stringify([code, model, upstream]);
    if (!groups.has(key)) groups.set(key, { key, code, model, upstream, count: 0, newest: one });
    groups.get(key).count++;
  }
  return [...groups.values()].toSorted((a, b) => b.count - a.count);
}

export class ErrorsView extends Polled {
  constructor() {
    super("errors");
    const fill = (fields, group) => this.#fill(fields, group);
    this.groups = new Rows(byId("errors"), "error-group", { key: ({ key }) => key, fill });
  }

  async load() {
    const { data } = await ask(`/v1/generations?status=failed&limit=${LATEST}`);
    this.groups.show(grouped(data));
    byId("errors-table").hidden = !data.length;
    tell(byId("errors-state"), data.length ? "" : "No generation has failed.");
  }

  #fill(fields, { code, model, upstream, count, newest }) {
    show(fields.code, code || "–");
    show(fields.model, model);
    show(fields.upstream, upstream || "–");
    show(fields.count, String(count));
    show(fields.newest, `${age(now() / 1000 - newest.ended_at)} ago`);
    fields.newest.title = moment(newest.ended_at).toLocaleString();
    show(fields.message, newest.error?.message ?? "");
    fields.sample.href = `#/${newest.id}`;
    show(fields.sample, `…${newest.id.slice(-6)}`);
    fields.sample.ariaLabel = `Sample …${newest.id.slice(-6)}`;
    const filters = Object.entries({ status: "failed", model, code, upstream }).filter(([, value]) => value);
    fields.link.href = `#/?${new URLSearchParams(filters)}`;
    fields.link.ariaLabel = `List ${code || "failures"} of ${[model, upstream].filter(Boolean).join(", ")}`;
  }
}
