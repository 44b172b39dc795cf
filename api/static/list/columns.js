// The columns of the list: which are shown, and by which the rows are sorted.
//
// The gateway lists the newest first. Any other order is that of the loaded generations, as the page says.

import { parts } from "../data/cursors.js";
import { byId, make } from "../ui/page.js";

const KEY = "tokencast-columns"; // in localStorage
const STATUSES = ["in_progress", "queued", "failed", "cancelled", "completed"];
const span = (from, to) => (from && to ? to - from : null);

/**
 * Columns in their order. `value`: what it is sorted by; `words`: of a rising and a falling order; `off`: not shown
 * unless it is chosen.
 */
const COLUMNS = {
  status: { title: "Status", value: ({ status }) => STATUSES.indexOf(status) },
  tenant: { title: "Tenant", value: ({ tenant }) => tenant ?? null },
  model: { title: "Model", value: ({ model }) => model },
  prompt: { title: "Prompt", value: ({ prompt }) => prompt?.toLowerCase() ?? null },
  details: { title: "Details", value: ({ error }) => error?.code ?? null },
  group: { title: "Group", value: ({ group }) => group, off: true },
  upstream: { title: "Upstream", value: ({ upstream }) => upstream, off: true },
  priority: { title: "Priority", value: ({ priority }) => priority, off: true },
  age: { title: "Age", value: ({ created_at }) => -created_at, words: ["newest first", "oldest first"] },
  first: { title: "First token", value: ({ created_at, first_token_at }) => span(created_at, first_token_at) },
  rate: { title: "Tokens/s", value: ({ id }, { rate }) => rate(id) },
  length: { title: "Tokens", value: ({ usage, cursor }) => usage?.completion_tokens ?? parts(cursor)[1] },
  subscribers: { title: "Subscribers", value: ({ id }, { subscribers }) => subscribers(id), off: true },
  attempt: { title: "Attempt", value: ({ attempt }) => attempt, off: true },
};
const NUMBERS = new Set(["priority", "age", "first", "rate", "length", "subscribers", "attempt"]);
const NAMES = Object.keys(COLUMNS);

export class Columns {
  #shown = new Set(NAMES.filter((name) => !COLUMNS[name].off));
  #default = [...this.#shown].join();

  /**
   * @param {() => void} onchange  after a choice
   * @param {{rate: (id: string) => ?number, subscribers: (id: string) => ?number}} values  that no generation has
   */
  constructor(onchange, values) {
    Object.assign(this, { onchange, values });
    this.menu = byId("columns");
    this.order = byId("list-sort");
    this.#restore();
    for (const name of NAMES) this.#begin(name);
    this.order.addEventListener("input", () => this.#changed());
    this.menu.addEventListener("focusout", ({ relatedTarget }) => {
      if (relatedTarget && !this.menu.contains(relatedTarget)) this.menu.open = false;
    });
    this.menu.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !this.menu.open) return;
      this.menu.open = false;
      this.menu.querySelector("summary").focus();
      event.stopPropagation();
    });
    this.#paint();
  }

  /** What is kept from earlier visits. */
  #restore() {
    const kept = (localStorage.getItem(KEY) ?? "").split(",").filter((name) => NAMES.includes(name));
    if (kept.length) this.#shown = new Set(kept);
  }

  #begin(name) {
    const { title, words } = COLUMNS[name];
    const box = make("input", { type: "checkbox", ariaLabel: `Column ${title}`, checked: this.#shown.has(name) });
    box.dataset.column = name;
    box.addEventListener("change", () => this.#choose(name, box.checked));
    byId("columns-choice").append(make("label", {}, box, ` ${title}`));
    const [rising, falling] = words ?? (NUMBERS.has(name) ? ["lowest first", "highest first"] : ["A to Z", "Z to A"]);
    this.order.append(
      new Option(`${title}: ${rising}`, name === "age" ? "" : name),
      new Option(`${title}: ${falling}`, `-${name}`),
    );
    const head = document.querySelector(`.head [data-col="${name}"]`);
    // For the mouse only: the menu does the same, and ten buttons in front of the list would be in the way.
    const button = make("button", { type: "button", tabIndex: -1, title: `Sort by ${title.toLowerCase()}` }, title);
    button.addEventListener("click", () => this.#turn(name));
    head.replaceChildren(button);
  }

  #choose(name, shown) {
    if (shown) this.#shown.add(name);
    else this.#shown.delete(name);
    localStorage.setItem(KEY, this.#names().join());
    this.#changed();
  }

  #names() {
    return NAMES.filter((name) => this.#shown.has(name));
  }

  /** Sorts by a column: falling first for numbers, rising for texts, and the other way round the next time. */
  #turn(name) {
    const [rising, falling] = [name === "age" ? "" : name, `-${name}`];
    const first = NUMBERS.has(name) && name !== "age" ? falling : rising;
    this.order.value = this.order.value === first ? (first === rising ? falling : rising) : first;
    this.#changed();
  }

  #changed() {
    this.#paint();
    this.onchange();
  }

  #paint() {
    byId("table").dataset.columns = this.#names().join(" ");
    for (const box of this.menu.querySelectorAll("input")) box.checked = this.#shown.has(box.dataset.column);
    const { name, falls } = this.#sort;
    for (const head of document.querySelectorAll(".head [data-col]")) {
      head.ariaSort = head.dataset.col === name ? (falls ? "descending" : "ascending") : null;
    }
  }

  get #sort() {
    const { value } = this.order;
    return { name: value.replace("-", "") || "age", falls: value.startsWith("-") };
  }

  /** Shows the column of tenants only to those who see several. */
  showTenants(several) {
    byId("table").toggleAttribute("data-tenants", several);
    this.menu.querySelector('[data-column="tenant"]').closest("label").hidden = !several;
  }

  /** Whether the order is another one than the gateway's. */
  get sorts() {
    return this.order.value !== "";
  }

  /** Returns ids, newest first, in the chosen order; those without a value are last. */
  sorted(ids, known) {
    if (!this.sorts) return ids;
    const { name, falls } = this.#sort;
    const value = new Map(ids.map((id) => [id, COLUMNS[name].value(known.get(id), this.values)]));
    const none = (one) => one === null || one === undefined || Number.isNaN(one);
    return ids.toSorted((a, b) => {
      const [first, second] = [value.get(a), value.get(b)];
      if (none(first) || none(second)) return none(first) - none(second);
      return (first < second ? -1 : first > second ? 1 : 0) * (falls ? -1 : 1);
    });
  }

  /** The part of the address: what differs from the default. */
  get query() {
    const names = this.#names().join();
    return [["sort", this.order.value], ["columns", names === this.#default ? "" : names]].filter(([, value]) => value);
  }

  /** Takes order and columns from the address; without columns those of earlier visits stay. @param {URLSearchParams} wanted */
  take(wanted) {
    this.order.value = wanted.get("sort") ?? "";
    if (this.order.selectedIndex === -1) this.order.value = "";
    const named = (wanted.get("columns") ?? "").split(",").filter((name) => NAMES.includes(name));
    if (named.length) this.#shown = new Set(named);
    this.#paint();
  }
}
