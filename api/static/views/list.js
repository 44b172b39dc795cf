// The live list. Rows are changed in place, so that focus, selection and scroll position are kept. Rows out of sight
// are neither laid out nor painted (`content-visibility`), and only visible rows are updated every second.

import { parts } from "../data/cursors.js";
import { now } from "../data/gateway.js";
import { Rates } from "../data/rates.js";
import { age, byId, clone, duration, fieldsOf, moment, rate, show, showStatus, tell, tokens } from "../ui/page.js";
import { sparkline } from "../ui/sparkline.js";
import { brief, sentence } from "../ui/waiting.js";

const COUNTERS = document.querySelectorAll("[data-filter]");
const labelsOf = (metadata) => Object.entries(metadata).map(([name, value]) => `${name}=${value}`);
const ID = /^gen_[0-9a-z]{34}$/;
const FILTERS = ["status", "model", "code", "upstream", "search"];
/** The menus that are filled with the values of the known generations. */
const MENUS = { model: ({ model }) => model, code: ({ error }) => error?.code, upstream: ({ upstream }) => upstream };

export class List {
  #rows = new Map(); // id → { node, fields }
  #shown = []; // ids, in the order of the page
  #visible = new Set();
  #timer = 0;
  #current = ""; // id of the row in the tab order
  #loading = false;
  #awaited = "";
  #offered = Object.fromEntries(Object.keys(MENUS).map((name) => [name, new Set()])); // values in the menus

  /**
   * @param {import("../data/generations.js").Generations} generations  @param {import("./wall.js").Chosen} chosen
   * @param {import("./overview.js").Overview} overview  @param {() => void} onfilter
   */
  constructor(generations, chosen, overview, onfilter) {
    Object.assign(this, { generations, chosen, overview, onfilter });
    this.body = byId("list");
    this.filters = Object.fromEntries(FILTERS.map((name) => [name, byId(`filter-${name}`)]));
    this.rates = new Rates(() => this.#inSight("in_progress"), (told) => told.forEach((one) => generations.upsert(one)));
    this.seen = new IntersectionObserver((entries) => this.#see(entries), { rootMargin: "100px" });
    // A busy browser reports several frames at once: the last one counts.
    const atEnd = (entries) => entries.at(-1).isIntersecting && this.more();
    this.end = new IntersectionObserver(atEnd, { rootMargin: "600px" });
    this.end.observe(byId("more"));
    for (const filter of Object.values(this.filters)) filter.addEventListener("input", () => this.#filtered());
    this.filters.search.addEventListener("keydown", (event) => this.#jump(event));
    this.body.addEventListener("keydown", (event) => this.#move(event));
    this.body.addEventListener("focusin", ({ target }) => this.#makeCurrent(target.closest("[data-id]")?.dataset.id));
    this.body.addEventListener("change", ({ target }) => {
      chosen.set(target.closest("[data-id]").dataset.id, target.checked);
    });
    byId("more").addEventListener("click", () => this.more());
    for (const counter of COUNTERS) counter.addEventListener("click", () => this.#only(counter.dataset.filter));
  }

  start() {
    this.rates.start();
    this.#timer ||= setInterval(() => this.#tick(), 1000);
    this.#tick();
  }

  stop() {
    this.rates.stop();
    clearInterval(this.#timer);
    this.#timer = 0;
  }

  // --- filters ---

  /** What the gateway filters by. */
  get filter() {
    const { status, model, code } = this.filters;
    return { status: status.value, model: model.value, code: code.value };
  }

  /** The filters, as in the address of the page; "" for none. */
  get query() {
    const set = Object.entries(this.filters).filter(([, { value }]) => value);
    return new URLSearchParams(set.map(([name, { value }]) => [name, value])).toString();
  }

  set query(text) {
    if (text === this.query) return;
    const wanted = new URLSearchParams(text);
    for (const [name, filter] of Object.entries(this.filters)) {
      const value = wanted.get(name) ?? "";
      if (name in MENUS) this.#offer(name, value);
      filter.value = value;
      if (filter.selectedIndex === -1) filter.value = ""; // the menu does not have it
    }
    this.#filtered();
  }

  #filtered() {
    this.onfilter();
    this.refilter();
  }

  matches(one) {
    const { id, status, model, metadata, error } = one;
    const { status: wanted, search } = this.filters;
    if (wanted.value && status !== wanted.value) return false;
    for (const [name, read] of Object.entries(MENUS)) {
      const { value } = this.filters[name];
      if (value && read(one) !== value) return false;
    }
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length) return true;
    const all = [id, model, error?.code ?? "", ...labelsOf(metadata)].join("\n").toLowerCase();
    return words.every((word) => all.includes(word));
  }

  /** Filters by a status, or removes that filter. */
  #only(status) {
    const { status: menu } = this.filters;
    menu.value = menu.value === status ? "" : status;
    this.#filtered();
  }

  refilter() {
    this.#menus();
    const { known, order } = this.generations;
    this.#arrange(order.filter((id) => this.matches(known.get(id))));
    if (!this.generations.loaded(this.filter)) this.more();
  }

  /** Shows changes: in place, unless rows appear, disappear or change their match. */
  update(changed) {
    const { known } = this.generations;
    let same = true;
    for (const id of changed) {
      const one = known.get(id);
      const row = this.#rows.get(id);
      same &&= Boolean(row) === Boolean(one && this.matches(one));
      if (row && one) this.#fill(row, one);
    }
    if (same) this.#state();
    else this.refilter();
  }

  #arrange(ids) {
    const wanted = new Set(ids);
    for (const [id, { node }] of this.#rows) {
      if (wanted.has(id)) continue;
      this.#rows.delete(id);
      this.#visible.delete(id);
      this.seen.unobserve(node);
      node.remove();
    }
    let next = this.body.firstElementChild;
    for (const id of ids) {
      const row = this.#rows.get(id) ?? this.#begin(id);
      if (row.node !== next) this.body.insertBefore(row.node, next);
      next = row.node.nextElementSibling;
    }
    this.#shown = ids;
    if (!this.#rows.has(this.#current)) this.#makeCurrent(ids[0]);
    if (this.#rows.has(this.#awaited) && document.activeElement === document.body) this.focus(this.#awaited);
    this.#state();
  }

  #state() {
    const { generations } = this;
    const status = this.filters.status.value;
    const filtered = Object.values(this.filters).some(({ value }) => value);
    const loading = !generations.loaded(this.filter);
    const none = loading ? "Loading…" : filtered ? "No match among the loaded generations." : "";
    tell(byId("list-state"), this.#shown.length ? "" : none);
    byId("welcome").hidden = Boolean(this.#shown.length || none);
    for (const counter of COUNTERS) counter.ariaPressed = String(counter.dataset.filter === status);
    byId("more").hidden = loading || generations.complete(this.filter);
    show(byId("list-count"), `${this.#shown.length}${filtered ? ` of ${generations.order.length}` : ""} shown`);
  }

  /** Adds every value of the known generations to the menus. */
  #menus() {
    for (const one of this.generations.known.values()) {
      for (const [name, read] of Object.entries(MENUS)) this.#offer(name, read(one));
    }
  }

  #offer(name, value) {
    if (!value || this.#offered[name].has(value)) return;
    this.#offered[name].add(value);
    this.filters[name].append(new Option(value, value));
  }

  async more() {
    if (this.#loading) return;
    this.#loading = true;
    const told = this.generations.more(this.filter);
    // The connection status shows what is wrong; retry in a second.
    await told.catch(() => new Promise((resolve) => setTimeout(resolve, 1000)));
    this.#loading = false;
    this.refilter();
    const { search, upstream } = this.filters;
    if (search.value || upstream.value) return; // without a match, it would load all pages
    this.end.unobserve(byId("more")); // check again: the end may still be in sight
    this.end.observe(byId("more"));
  }

  // --- a row ---

  #begin(id) {
    const node = clone("row");
    const row = { node, fields: fieldsOf(node) };
    node.dataset.id = id;
    row.fields.link.href = `#/${id}`;
    row.fields.link.tabIndex = -1;
    show(row.fields.link, id);
    row.fields.choose.checked = this.chosen.has(id);
    row.fields.choose.ariaLabel = `${id} on the wall`;
    this.#rows.set(id, row);
    this.#fill(row, this.generations.known.get(id));
    this.seen.observe(node);
    return row;
  }

  #fill({ fields }, one) {
    const { status, model, attempt, usage, metadata, error, cursor, created_at, first_token_at, queue } = one;
    showStatus(fields.status, status);
    show(fields.model, model);
    const labels = labelsOf(metadata);
    show(fields.code, error?.code ?? "");
    fields.code.title = error?.message ?? "";
    show(fields.reason, queue ? brief(queue) : "");
    fields.reason.title = queue ? sentence(queue) : "";
    show(fields.labels, labels.join(" "));
    fields.labels.title = labels.join("\n");
    show(fields.age, age(now() / 1000 - created_at));
    fields.age.title = moment(created_at).toLocaleString();
    show(fields.first, first_token_at ? duration((first_token_at - created_at) * 1000) : "");
    const [attemptId, seq] = parts(cursor);
    const length = usage ? tokens(usage, "completion") : attemptId && seq ? `≈ ${seq}` : "";
    show(fields.length, length);
    show(fields.attempt, attempt ? String(attempt) : "");
    show(fields.subscribers, String(this.overview.subscribers[one.id] ?? ""));
    this.#rate(fields, one);
  }

  #rate(fields, { id, status, usage, first_token_at, ended_at }) {
    const rates = this.rates.of(id);
    const running = status === "in_progress";
    const spent = ended_at - first_token_at;
    const whole = usage && first_token_at && spent > 0 ? usage.completion_tokens / spent : NaN;
    show(fields.rate, rate(running ? rates.at(-1) : whole));
    fields.spark.toggleAttribute("hidden", !running || rates.length < 2);
    if (running) sparkline(fields.spark, rates);
  }

  #see(entries) {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) this.#visible.add(target.dataset.id);
      else this.#visible.delete(target.dataset.id);
    }
  }

  #tick() {
    for (const id of this.#visible) {
      const one = this.generations.known.get(id);
      if (one) this.#fill(this.#rows.get(id), one);
    }
  }

  /** Returns the visible generations of a status, and the id before the first. */
  #inSight(status) {
    const { known, order } = this.generations;
    const ids = this.#shown.filter((id) => this.#visible.has(id) && known.get(id)?.status === status);
    const first = order.indexOf(ids[0]);
    return { ids, after: first > 0 ? order[first - 1] : "" };
  }

  /** Reads reasons and positions of the visible generations that wait: the activity reports no positions. */
  async refreshWaiting() {
    const { ids, after } = this.#inSight("queued");
    if (!ids.length) return;
    const told = await this.generations.waiting(after).catch(() => []); // the connection status shows the error
    for (const one of told) this.generations.upsert(one);
  }

  // --- keyboard: one row is in the tab order, the arrow keys move between rows ---

  #makeCurrent(id) {
    const set = (row, index) => row && [row.fields.link, row.fields.choose].forEach((node) => (node.tabIndex = index));
    set(this.#rows.get(this.#current), -1);
    set(this.#rows.get(id), 0);
    this.#current = id ?? "";
  }

  /** Focuses a row; one that is not loaded yet is focused when it appears, unless something else has the focus. */
  focus(id = this.#current) {
    this.#awaited = this.#rows.has(id) ? "" : id;
    this.#rows.get(id)?.fields.link.focus();
  }

  #move(event) {
    const at = this.#shown.indexOf(this.#current);
    const last = this.#shown.length - 1;
    if (event.key === " " && event.target.matches("a")) {
      event.preventDefault();
      return this.#rows.get(this.#current)?.fields.choose.click();
    }
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, j: at + 1, k: at - 1, Home: 0, End: last }[event.key];
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.focus(this.#shown[Math.min(last, Math.max(0, to))]);
  }

  /** Enter opens a generation whose whole id was entered, loaded or not; otherwise it moves to the first row. */
  #jump(event) {
    if (event.key !== "Enter") return;
    const text = event.target.value.trim();
    if (ID.test(text)) location.hash = `#/${text}`;
    else this.focus(this.#shown[0]);
  }

  /** Updates the check boxes after a choice made elsewhere. */
  mark() {
    for (const [id, { fields }] of this.#rows) fields.choose.checked = this.chosen.has(id);
  }
}
