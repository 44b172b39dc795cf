// Retry and cancel several generations: those with a check mark, or without one all that match the filters.

import { ENDINGS, ask, newKey, pathOf } from "../data/gateway.js";
import { confirmed } from "../ui/confirm.js";
import { byId, show, tell } from "../ui/page.js";

const MOST = 1000; // generations at once
const TIMEOUT = 120_000; // ms
const FORBIDDEN = 403;

const plural = (count) => `${count} generation${count === 1 ? "" : "s"}`;

export class Bulk {
  #busy = false;
  #forbidden = false;

  /**
   * @param {import("./list.js").List} list  @param {import("./wall.js").Chosen} chosen
   * @param {import("../data/generations.js").Generations} generations
   */
  constructor(list, chosen, generations) {
    Object.assign(this, { list, chosen, generations });
    byId("bulk-retry").addEventListener("click", () => this.#run(() => this.#retry()));
    byId("bulk-cancel").addEventListener("click", () => this.#run(() => this.#cancel()));
    byId("bulk-clear").addEventListener("click", () => this.#clear());
  }

  paint() {
    const { size } = this.chosen;
    const { status } = this.list.filter;
    const [retry, cancel] = [byId("bulk-retry"), byId("bulk-cancel")];
    retry.hidden = this.#forbidden || !(size || ENDINGS.has(status));
    cancel.hidden = this.#forbidden || !(size || ["queued", "in_progress"].includes(status));
    show(retry, size ? `Retry ${size} selected…` : "Retry all that match…");
    show(cancel, size ? `Cancel ${size} selected…` : "Cancel all that match…");
    retry.disabled = cancel.disabled = this.#busy;
    byId("bulk-clear").hidden = !size;
    byId("bulk").hidden = retry.hidden && cancel.hidden && !size && !byId("bulk-result").textContent;
  }

  #clear() {
    this.#tell("");
    for (const id of this.chosen.ids) this.chosen.set(id, false);
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
      this.#forbidden = error.status === FORBIDDEN;
      return error.message;
    }).finally(() => (this.#busy = false));
    this.#tell(said);
  }

  async #retry() {
    const { status, code } = this.list.filter;
    const onlyThose = new URLSearchParams(Object.entries({ status, code }).filter(([, value]) => value)).toString();
    const byGateway = this.list.query === onlyThose && !this.#showsTenants();
    if (!this.chosen.size && byGateway) return this.#retryMatching({ status, code: code || null });
    const ids = await this.#ids((one) => ENDINGS.has(one.status));
    if (!ids.length) return "None of them has ended.";
    if (!(await confirmed(`Run ${plural(ids.length)} again, as new ones?`, "Retry"))) return "";
    return this.#each(ids, "Enqueued again", (id) => ask(`${pathOf(id)}/retry`, { method: "POST" }));
  }

  /** Whether the list has generations of all tenants, as for an operator; the gateway retries those of one at a time. */
  #showsTenants() {
    return [...this.generations.known.values()].some(({ tenant }) => tenant);
  }

  /** Lets the gateway find and retry them: first to count them, then in earnest. */
  async #retryMatching(filter) {
    const { matched, has_more } = await this.#askRetry({ ...filter, dry_run: true });
    if (!matched) return "No generation matches.";
    const count = `${has_more ? "the newest " : ""}${plural(matched)}`;
    if (!(await confirmed(`Run ${count} again, as new ones?`, "Retry"))) return "";
    const { retried, data } = await this.#askRetry({ ...filter, limit: matched }, { "idempotency-key": newKey() });
    const refused = data.find(({ error, id }) => error && !id)?.error;
    return report("Enqueued again", retried, data.length, refused?.message);
  }

  #askRetry(body, headers = {}) {
    const request = { method: "POST", body: JSON.stringify(body), headers, timeout: TIMEOUT };
    return ask("/v1/generations/retry", request);
  }

  async #cancel() {
    const ids = await this.#ids((one) => !ENDINGS.has(one.status));
    if (!ids.length) return "All of them have ended.";
    if (!(await confirmed(`Cancel ${plural(ids.length)}? Their text so far is kept.`, "Cancel them"))) return "";
    return this.#each(ids, "Cancelled", (id) => ask(`${pathOf(id)}/cancel`, { method: "POST" }));
  }

  /** Returns the ids of the selection, or of all that match the filters. A selected one may not be loaded. */
  async #ids(fits) {
    const { known } = this.generations;
    if (this.chosen.size) return this.chosen.ids.filter((id) => !known.has(id) || fits(known.get(id)));
    const found = await this.generations.find(this.list.filter, MOST);
    return found.filter((one) => this.list.matches(one) && fits(one)).map(({ id }) => id);
  }

  async #each(ids, done, act) {
    let [count, refused] = [0, ""];
    for (const [number, id] of ids.entries()) {
      show(byId("bulk-result"), `${number + 1} of ${ids.length}…`);
      byId("bulk-result").hidden = false;
      try {
        await act(id);
        count++;
      } catch (error) {
        if (error.status === undefined || error.status === FORBIDDEN) throw error;
        refused ||= error.message;
      }
    }
    return report(done, count, ids.length, refused);
  }
}

function report(done, count, of, refused = "") {
  if (count === of) return `${done}: ${count}.`;
  return `${done}: ${count} of ${of}. ${refused}`;
}
