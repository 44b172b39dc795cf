// The status summary: generations by status, the queue, the workers and their slots.

import { ask } from "../data/gateway.js";
import { byId, duration, make, show } from "../ui/page.js";

const PERIOD = 2000; // ms

export class Overview {
  /** Subscribers of the most followed generations at the gateway that answered. @type {Record<string, number>} */
  subscribers = {};
  /** The tenant whose generations are counted; "" for all that the caller sees. */
  tenant = "";
  #timer = 0;
  #asking = false;

  /** @param {(trouble: ?Error) => void} ontold  called after each request, with the error if it is temporary */
  constructor(ontold) {
    this.ontold = ontold;
  }

  start() {
    this.#timer ||= setInterval(() => this.refresh(), PERIOD);
    this.refresh();
  }

  stop() {
    clearInterval(this.#timer);
    this.#timer = 0;
  }

  async refresh() {
    if (this.#asking) return;
    this.#asking = true;
    const told = await ask(`/v1/overview${this.tenant && `?tenant=${encodeURIComponent(this.tenant)}`}`).catch((error) => error);
    this.#asking = false;
    if (told instanceof Error) return this.ontold(told.passes ? told : null);
    this.subscribers = told.subscribers.generations;
    for (const [status, count] of Object.entries(told.generations)) {
      show(byId(`count-${status}`), String(count));
      byId(`count-${status}`).toggleAttribute("data-none", !count);
    }
    const { depth, oldest_seconds } = told.queue;
    show(byId("queue"), depth ? String(depth) : "empty");
    show(byId("queue-oldest"), depth ? `oldest: ${duration(oldest_seconds * 1000)}` : "");
    show(byId("subscribers"), String(told.subscribers.total));
    this.#workers(told.workers);
    this.ontold(null);
  }

  #workers(workers) {
    const bars = byId("workers");
    const most = workers.slice(0, 32);
    while (bars.children.length > most.length) bars.lastElementChild.remove();
    for (const [number, { slots, running }] of most.entries()) {
      const bar = bars.children[number] ?? bars.appendChild(make("meter", { min: 0 }));
      Object.assign(bar, { max: slots, value: running, title: `${running} of ${slots} slots` });
      bar.ariaLabel = `Worker ${number + 1}: ${running} of ${slots} slots are busy`;
    }
    const [busy, slots] = ["running", "slots"].map((name) => workers.reduce((sum, worker) => sum + worker[name], 0));
    show(byId("workers-text"), workers.length ? String(workers.length) : "none");
    show(byId("slots"), workers.length ? `${busy} of ${slots} slots busy` : "Generations wait until a worker starts.");
    byId("workers-text").classList.toggle("error", !workers.length);
  }
}
