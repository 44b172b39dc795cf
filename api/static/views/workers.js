// The workers: what they run, since when and in which version; operators let one drain.

import { ask, now } from "../data/gateway.js";
import { confirmed } from "../ui/confirm.js";
import { age, byId, make, moment, show, tell } from "../ui/page.js";
import { Polled } from "../ui/polled.js";
import { Rows } from "../ui/rows.js";

const FORBIDDEN = 403;
const STATES = { running: "running", draining: "draining", lost: "lost" };
const since = (seconds) => (seconds === null ? "–" : age(Math.max(0, now() / 1000 - seconds)));

export class WorkersView extends Polled {
  constructor() {
    super("workers");
    this.cards = new Rows(byId("worker-cards"), "worker", {
      key: ({ id }) => id,
      fill: (fields, worker) => this.#fill(fields, worker),
      begin: (row) => row.fields.drain.addEventListener("click", () => this.#drain(row.item)),
    });
  }

  async load() {
    const { data } = await ask("/v1/workers").catch((error) => {
      if (error.status === FORBIDDEN) this.stop(); // only operators see them
      throw error;
    });
    this.cards.show(data);
    const live = data.filter(({ state }) => state !== "lost");
    const [running, slots] = ["running", "slots"].map((name) => live.reduce((sum, worker) => sum + (worker[name] ?? 0), 0));
    show(byId("workers-summary"), live.length ? `${running} of ${slots} slots busy` : "");
    tell(byId("workers-state"), live.length ? "" : "No worker is running: generations wait until one starts.");
  }

  #fill(fields, worker) {
    const { id, state, host, pid, version, slots, running, upstreams, started_at, seen_at, generations } = worker;
    show(fields.id, id);
    show(fields.state, STATES[state] ?? state);
    fields.state.dataset.worker = state;
    fields.facts.hidden = state === "lost";
    tell(fields.lost, state === "lost" ? `It stopped unexpectedly, ${since(seen_at)} ago. What it ran goes back to the queue.` : "");
    show(fields.host, host ?? "–");
    show(fields.pid, pid === null ? "–" : String(pid));
    show(fields.version, version ?? "–");
    show(fields.slots, `${running} of ${slots}`);
    Object.assign(fields.meter, { max: slots || 1, value: running ?? 0 });
    fields.meter.ariaLabel = `Busy slots of ${id}`;
    show(fields.upstreams, upstreams?.join(", ") || "–");
    show(fields.started, since(started_at));
    fields.started.title = started_at === null ? "" : moment(started_at).toLocaleString();
    fields.drain.hidden = state !== "running" || upstreams === null; // one of an older version does not obey
    fields.drain.ariaLabel = `Drain ${id}`;
    this.#runs(fields.runs, generations);
    const more = (running ?? 0) - generations.length;
    tell(fields.more, more > 0 && generations.length ? `and ${more} more` : "");
  }

  /** The running generations, as links. */
  #runs(list, generations) {
    const known = new Map(Array.from(list.children, (item) => [item.dataset.id, item]));
    const items = generations.map(({ id, tenant, model, upstream, claimed_at }) => {
      const item = known.get(id) ?? make("li", {}, make("a", { className: "id", href: `#/${id}`, textContent: `…${id.slice(-6)}`, title: id }), make("span"));
      item.dataset.id = id;
      show(item.lastElementChild, ` ${model}, ${upstream}, ${tenant}, for ${since(claimed_at)}`);
      return item;
    });
    const same = items.length === list.children.length && items.every((item, number) => item === list.children[number]);
    if (!same) list.replaceChildren(...items);
    list.hidden = !items.length;
  }

  async #drain({ id }) {
    const text = `Let ${id} drain? It takes no more generations, ends what it runs and exits. What started it may start it again.`;
    if (await confirmed(text, "Drain")) await this.act(() => ask(`/v1/workers/${encodeURIComponent(id)}/drain`, { method: "POST" }));
  }
}
