// The controls of the list's conditions, and their form in the address of the page.

import { matcher, secondsOf } from "../data/conditions.js";
import { byId } from "../ui/page.js";

/** The menus that are filled with the values of the known generations. */
const MENUS = {
  model: ({ model }) => model,
  code: ({ error }) => error?.code,
  upstream: ({ upstream }) => upstream,
  group: ({ group }) => group,
  tenant: ({ tenant }) => tenant,
};
const RARE = ["group", "tenant"]; // hidden while there is nothing to choose
const NAMES = ["status", ...Object.keys(MENUS), "search"];
const ANY = "";
const CUSTOM = "custom";

export class Filters {
  #offered = Object.fromEntries(Object.keys(MENUS).map((name) => [name, new Set()])); // values in the menus

  /** @param {() => void} onchange  after an input */
  constructor(onchange) {
    this.controls = Object.fromEntries(NAMES.map((name) => [name, byId(`filter-${name}`)]));
    this.range = byId("filter-range");
    this.since = byId("filter-since");
    this.until = byId("filter-until");
    for (const control of [...Object.values(this.controls), this.range, this.since, this.until]) {
      control.addEventListener("input", () => {
        this.#showRange();
        onchange();
      });
    }
    this.#showRange();
  }

  /** @returns {import("../data/conditions.js").Filter} */
  get value() {
    const set = Object.entries(this.controls).map(([name, { value }]) => [name, value]);
    return { ...Object.fromEntries(set), ...this.#times() };
  }

  #times() {
    if (this.range.value !== CUSTOM) return { since: this.range.value, until: "" };
    const iso = ({ value }) => (value ? new Date(value).toISOString() : "");
    return { since: iso(this.since), until: iso(this.until) };
  }

  /** Takes a filter from the address; values that its controls cannot have are left out. */
  set value(wanted) {
    for (const [name, control] of Object.entries(this.controls)) {
      const value = wanted[name] ?? ANY;
      if (name in MENUS) this.offer(name, value);
      control.value = value;
      if (control.selectedIndex === -1) control.value = ANY;
    }
    const { since = ANY, until = ANY } = wanted;
    this.range.value = since;
    if (until || this.range.selectedIndex === -1) this.range.value = CUSTOM;
    if (this.range.value === CUSTOM) [this.since.value, this.until.value] = [local(since), local(until)];
    if (this.range.value === CUSTOM && !this.since.value && !this.until.value) this.range.value = ANY;
    this.#showRange();
  }

  /** Returns a function that says whether a generation meets the conditions. */
  get matches() {
    return matcher(this.value);
  }

  get any() {
    return Object.values(this.value).some(Boolean);
  }

  /** Whether the gateway finds the matches by reading generations: it has no index for these. */
  get reads() {
    const { search, upstream } = this.controls;
    return Boolean(search.value.trim() || upstream.value);
  }

  /** Whether it names a span before now. */
  get slides() {
    return ![ANY, CUSTOM].includes(this.range.value);
  }

  #showRange() {
    byId("filter-times").hidden = this.range.value !== CUSTOM;
  }

  /** Adds every value of these generations to the menus. */
  offerAll(generations) {
    for (const one of generations) for (const [name, read] of Object.entries(MENUS)) this.offer(name, read(one));
  }

  offer(name, value) {
    if (!value || this.#offered[name].has(value)) return;
    this.#offered[name].add(value);
    this.controls[name].append(new Option(value, value));
    if (RARE.includes(name)) this.controls[name].hidden = false;
  }
}

/** Returns a time as an input of local time takes it; "" if it is none. */
function local(text) {
  const time = new Date(secondsOf(text) * 1000);
  if (Number.isNaN(time.getTime())) return "";
  return new Date(time.getTime() - time.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
}
