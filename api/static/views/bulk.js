// Retry, cancel and delete several generations: those that are selected, or without a selection all that match the filters.

import { conditionsOf } from "../data/conditions.js";
import { ENDINGS, ask, newKey, pathOf } from "../data/gateway.js";
import { confirmed } from "../ui/confirm.js";
import { byId, show, tell } from "../ui/page.js";

const MOST = 1000; // generations at once
const AT_ONCE = 6; // requests
const TIMEOUT = 120_000; // ms
const OPEN = ["queued", "in_progress"];

const plural = (count) => `${count} generation${count === 1 ? "" : "s"}`;

/**
 * `fits`: which generations it changes; `statuses`: with which filter it is offered; `counted`: the field of the
 * gateway's answer.
 */
const ACTS = {
  retry: {
    label: "Retry",
    fits: ({ status }) => ENDINGS.has(status),
    statuses: [...ENDINGS],
    none: "None of them has ended.",
    question: (count) => `Run ${count} again, as new ones?`,
    yes: "Retry",
    done: "Enqueued again",
    counted: "retried",
    one: (id) => ask(`${pathOf(id)}/retry`, { method: "POST" }),
    headers: () => ({ "idempotency-key": newKey() }),
  },
  cancel: {
    label: "Cancel",
    fits: ({ status }) => !ENDINGS.has(status),
    statuses: OPEN,
    none: "All of them have ended.",
    question: (count) => `Cancel ${count}? Their text so far is kept.`,
    yes: "Cancel them",
    done: "Cancelled",
    counted: "cancelled",
    one: (id) => ask(`${pathOf(id)}/cancel`, { method: "POST" }),
  },
  delete: {
    label: "Delete",
    fits: () => true,
    statuses: [...ENDINGS, ...OPEN],
    none: "There is none.",
    question: (count) => `Delete ${count} permanently? Those that have not ended are cancelled first.`,
    yes: "Delete permanently",
    done: "Deleted",
    counted: "deleted",
    one: (id) => ask(pathOf(id), { method: "DELETE" }),
  },
};

export class Bulk {
  #busy = false;

  /**
   * @param {import("./list.js").List} list  @param {import("./wall.js").Chosen} chosen
   * @param {import("../data/generations.js").Generations} generations
   */
  constructor(list, chosen, generations) {
    Object.assign(this, { list, chosen, generations });
    for (const name of Object.keys(ACTS)) {
      byId(`bulk-${name}`).addEventListener("click", () => this.#run(() => this.#act(name)));
    }
    byId("bulk-clear").addEventListener("click", () => this.#clear());
  }

  paint() {
    const { size } = this.chosen;
    const { status } = this.list.filter;
    for (const [name, { label, statuses }] of Object.entries(ACTS)) {
      const button = byId(`bulk-${name}`);
      button.hidden = !(size || statuses.includes(status));
      button.disabled = this.#busy;
      show(button, size ? `${label} ${size} selected…` : `${label} all that match…`);
    }
    byId("bulk-clear").hidden = !size;
    const offers = status && document.body.dataset.role !== "read";
    byId("bulk").hidden = !size && !offers && !byId("bulk-result").textContent;
  }

  #clear() {
    this.#tell("");
    this.chosen.setAll(this.chosen.ids, false);
    this.list.focus();
  }

  #tell(text) {
    tell(byId("bulk-result"), text);
    this.paint();
  }

  async #run(act) {
    this.#busy = true;
    this.#tell("");
    const said = await act().catch((error) => {
      if (error.status === undefined) throw error;
      return error.message;
    }).finally(() => (this.#busy = false));
    this.#tell(said);
  }

  async #act(name) {
    const act = ACTS[name];
    const { filter } = this.list;
    const several = [...this.generations.known.values()].some(({ tenant }) => tenant) && !filter.tenant;
    if (!this.chosen.size && !several) return this.#matching(name, act, conditionsOf(filter));
    const ids = await this.#ids(act.fits);
    if (!ids.length) return act.none;
    const unseen = ids.filter((id) => !this.list.shows(id)).length;
    const note = this.chosen.size && unseen ? ` ${unseen} of them ${unseen === 1 ? "is" : "are"} not shown now.` : "";
    if (!(await confirmed(act.question(plural(ids.length)) + note, act.yes))) return "";
    return this.#each(ids, act);
  }

  /** Lets the gateway find and change them, of one tenant: first to count them, then in earnest. */
  async #matching(name, { question, yes, done, counted, headers = () => ({}) }, conditions) {
    const send = (body, more = {}) =>
      ask(`/v1/generations/${name}`, { method: "POST", body: JSON.stringify(body), headers: more, timeout: TIMEOUT });
    const { matched, has_more } = await send({ ...conditions, dry_run: true });
    if (!matched) return "No generation matches.";
    const count = `${has_more ? "the newest " : ""}${plural(matched)}`;
    if (!(await confirmed(question(count), yes))) return "";
    const told = await send({ ...conditions, limit: matched }, headers());
    const refused = told.data.find(({ error, id }) => error && !id)?.error;
    return report(done, told[counted], told.data.length, refused?.message);
  }

  /** Returns the ids of the selection, or of all that match the filters. A selected one may not be loaded. */
  async #ids(fits) {
    const { known } = this.generations;
    if (this.chosen.size) return this.chosen.ids.filter((id) => !known.has(id) || fits(known.get(id)));
    const found = await this.generations.find(this.list.filter, MOST);
    return found.filter((one) => this.list.matches(one) && fits(one)).map(({ id }) => id);
  }

  /** Changes them one by one, a few at the same time. */
  async #each(ids, { done, one }) {
    let [count, number, refused] = [0, 0, ""];
    const work = ids.values();
    const run = async () => {
      for (const id of work) {
        show(byId("bulk-result"), `${++number} of ${ids.length}…`);
        byId("bulk-result").hidden = false;
        try {
          await one(id);
          count++;
        } catch (error) {
          if (error.status === undefined) throw error;
          refused ||= error.message;
        }
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, run));
    if (one === ACTS.delete.one) this.chosen.setAll(ids, false);
    return report(done, count, ids.length, refused);
  }
}

function report(done, count, of, refused = "") {
  if (count === of) return `${done}: ${count}.`;
  return `${done}: ${count} of ${of}. ${refused}`;
}
