// The live list. Rows are changed in place, so that focus, selection and scroll position are kept. Rows out of sight
// are neither laid out nor painted (`content-visibility`), and only visible rows are updated every second.

import { parts } from "../data/cursors.js";
import { now } from "../data/gateway.js";
import { Columns } from "../list/columns.js";
import { Filters } from "../list/filters.js";
import { Rates } from "../list/rates.js";
import { age, announce, byId, clone, duration, fieldsOf, moment, rate, show, showStatus, tell, tokens } from "../ui/page.js";
import { sparkline } from "../ui/sparkline.js";
import { brief, sentence } from "../ui/waiting.js";

const COUNTERS = document.querySelectorAll("[data-filter]");
const labelsOf = (metadata) => Object.entries(metadata).map(([name, value]) => `${name}=${value}`);
const ID = /^gen_[0-9a-z]{34}$/;
const TYPING = 250; // ms without a key until the gateway is asked

export class List {
  #rows = new Map(); // id → { node, fields }
  #shown = []; // ids, in the order of the page
  #visible = new Set();
  #timer = 0;
  #current = ""; // id of the row in the tab order
  #loading = false;
  #awaited = "";
  #refused = ""; // why the gateway does not accept the filter
  #typing = 0; // timer
  #unsaid = false; // whether the result of a filter was not announced yet

  /**
   * @param {import("../data/generations.js").Generations} generations  @param {import("./wall.js").Chosen} chosen
   * @param {import("./overview.js").Overview} overview  @param {() => void} onfilter
   */
  constructor(generations, chosen, overview, onfilter) {
    Object.assign(this, { generations, chosen, overview, onfilter });
    this.body = byId("list");
    this.filters = new Filters(() => this.#filtered());
    this.columns = new Columns(() => this.#filtered(), {
      rate: (id) => this.rates.of(id).at(-1) ?? this.#wholeRate(generations.known.get(id)),
      subscribers: (id) => overview.subscribers[id] ?? 0,
    });
    this.rates = new Rates(() => this.#inSight("in_progress"), (told) => told.forEach((one) => generations.upsert(one)));
    this.seen = new IntersectionObserver((entries) => this.#see(entries), { rootMargin: "100px" });
    // A busy browser reports several frames at once: the last one counts.
    const atEnd = (entries) => entries.at(-1).isIntersecting && this.more();
    this.end = new IntersectionObserver(atEnd, { rootMargin: "600px" });
    this.end.observe(byId("more"));
    this.filters.controls.search.addEventListener("keydown", (event) => this.#jump(event));
    this.body.addEventListener("keydown", (event) => this.key(event));
    this.body.addEventListener("focusin", ({ target }) => this.#makeCurrent(target.closest("[data-id]")?.dataset.id));
    this.body.addEventListener("change", ({ target }) => {
      chosen.set(target.closest("[data-id]").dataset.id, target.checked);
    });
    byId("choose-all").addEventListener("change", ({ target }) => this.chooseAll(target.checked));
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

  /** @returns {import("../data/conditions.js").Filter} */
  get filter() {
    return this.filters.value;
  }

  /** The filters, the order and the columns, as in the address of the page; "" for the defaults. */
  get query() {
    const set = Object.entries(this.filter).filter(([, value]) => value);
    return new URLSearchParams([...set, ...this.columns.query]).toString();
  }

  set query(text) {
    if (text === this.query) return;
    const wanted = new URLSearchParams(text);
    this.filters.value = Object.fromEntries(wanted);
    this.columns.take(wanted);
    this.#filtered();
  }

  #filtered() {
    this.#refused = "";
    this.#unsaid = true;
    this.overview.tenant = this.filter.tenant;
    this.onfilter();
    this.refilter();
  }

  matches(one) {
    return this.filters.matches(one);
  }

  shows(id) {
    return this.#rows.has(id);
  }

  /** Filters by a status, or removes that filter. */
  #only(status) {
    const { status: menu } = this.filters.controls;
    menu.value = menu.value === status ? "" : status;
    this.#filtered();
  }

  refilter() {
    const { known, order } = this.generations;
    this.filters.offerAll(known.values());
    const { matches } = this.filters;
    this.#arrange(this.columns.sorted(order.filter((id) => matches(known.get(id))), known));
    clearTimeout(this.#typing);
    if (this.#refused || this.generations.loaded(this.filter)) return;
    const wait = document.activeElement === this.filters.controls.search ? TYPING : 0;
    this.#typing = setTimeout(() => this.more(), wait);
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
    if (same && !this.columns.sorts) this.#state();
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
    const focused = this.body.contains(document.activeElement) ? document.activeElement : null;
    let next = this.body.firstElementChild;
    for (const id of ids) {
      const row = this.#rows.get(id) ?? this.#begin(id);
      if (row.node !== next) this.body.insertBefore(row.node, next);
      next = row.node.nextElementSibling;
    }
    this.#shown = ids;
    if (focused?.isConnected) focused.focus({ preventScroll: true }); // a row that moves loses it
    if (!this.#rows.has(this.#current)) this.#makeCurrent(ids[0]);
    if (this.#rows.has(this.#awaited) && document.activeElement === document.body) this.focus(this.#awaited);
    this.#state();
  }

  #state() {
    const { generations, filter, filters } = this;
    const [loading, complete] = [!generations.loaded(filter), generations.complete(filter)];
    const back = `back to ${new Date(generations.reached(filter)).toLocaleString()}`;
    const none = complete ? "No generation matches." : `No match ${back}.`;
    const empty = loading ? "Loading…" : filters.any ? none : "";
    tell(byId("list-state"), this.#refused || (this.#shown.length ? "" : empty));
    byId("welcome").hidden = Boolean(this.#shown.length || empty || this.#refused);
    for (const counter of COUNTERS) counter.ariaPressed = String(counter.dataset.filter === filter.status);
    byId("more").hidden = loading || complete;
    show(byId("more"), filters.reads ? "Search further back" : "Load more");
    const of = filters.any ? ` of ${generations.order.length}` : "";
    const searched = filters.reads && !loading && !complete ? `, searched ${back}` : "";
    const sorted = this.columns.sorts && !complete ? ", sorted among those that are loaded" : "";
    show(byId("list-count"), `${this.#shown.length}${of} shown${searched}${sorted}`);
    this.#markAll();
    if (this.#unsaid && !loading) announce(byId("list-state").textContent || byId("list-count").textContent);
    this.#unsaid &&= loading;
  }

  async more() {
    if (this.#loading) return;
    this.#loading = true;
    const told = this.generations.more(this.filter);
    // The connection status shows what is wrong; retry in a second. A filter that is refused is not tried again.
    await told.catch(({ passes, message }) => {
      if (passes === false) this.#refused = message;
      return new Promise((resolve) => setTimeout(resolve, 1000));
    });
    this.#loading = false;
    this.refilter();
    if (this.filters.reads || this.#refused) return; // without a match, it would load all pages
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
    row.fields.choose.ariaLabel = `Select ${id}`;
    this.#rows.set(id, row);
    this.#fill(row, this.generations.known.get(id));
    this.seen.observe(node);
    return row;
  }

  #fill({ fields }, one) {
    const { status, attempt, usage, metadata, error, cursor, created_at, first_token_at, queue, prompt } = one;
    showStatus(fields.status, status);
    for (const name of ["model", "group", "upstream", "tenant", "prompt"]) show(fields[name], one[name] ?? "");
    fields.prompt.title = prompt ?? "";
    show(fields.priority, String(one.priority ?? ""));
    const labels = labelsOf(metadata);
    show(fields.code, error?.code ?? "");
    fields.code.title = error?.message ?? "";
    show(fields.message, error?.message ?? "");
    show(fields.reason, queue ? brief(queue) : "");
    fields.reason.title = queue ? sentence(queue, queue.upstreams) : "";
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

  #rate(fields, one) {
    const rates = this.rates.of(one.id);
    const running = one.status === "in_progress";
    show(fields.rate, rate(running ? rates.at(-1) : this.#wholeRate(one)));
    fields.spark.toggleAttribute("hidden", !running || rates.length < 2);
    if (running) sparkline(fields.spark, rates);
  }

  /** The rate of one that has ended; NaN if it is not known. */
  #wholeRate({ usage, first_token_at, ended_at }) {
    const spent = ended_at - first_token_at;
    return usage && first_token_at && spent > 0 ? usage.completion_tokens / spent : NaN;
  }

  #see(entries) {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) this.#visible.add(target.dataset.id);
      else this.#visible.delete(target.dataset.id);
    }
  }

  #tick() {
    if (this.filters.slides) this.refilter(); // time passes
    for (const id of this.#visible) {
      const one = this.generations.known.get(id);
      if (one) this.#fill(this.#rows.get(id), one);
    }
  }

  /** Returns the visible generations of a status, newest first, and the id before the first. */
  #inSight(status) {
    const { known, order } = this.generations;
    const ids = this.#shown.filter((id) => this.#visible.has(id) && known.get(id)?.status === status).toSorted().reverse();
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

  /** Handles a key in the list, or on a page on which nothing has the focus. Returns whether it means something here. */
  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const inside = this.body.contains(event.target);
    const at = this.#shown.indexOf(this.#current);
    const last = this.#shown.length - 1;
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, j: at + 1, k: at - 1, Home: 0, End: last }[event.key];
    const acts = { r: "bulk-retry", c: "bulk-cancel", Delete: "bulk-delete" }[event.key];
    if (to !== undefined) this.focus(this.#shown[inside ? Math.min(last, Math.max(0, to)) : Math.max(0, at)]);
    else if (event.key === "a") this.chooseAll(this.#shown.some((id) => !this.chosen.has(id)));
    else if (acts) byId(acts).offsetParent && byId(acts).click(); // if it is offered
    else if (event.key === " " && inside && event.target.matches("a")) this.#rows.get(this.#current)?.fields.choose.click();
    else return;
    event.preventDefault();
  }

  /** Selects all shown generations, or none of them. */
  chooseAll(chosen) {
    this.chosen.setAll(this.#shown, chosen);
  }

  /** Enter opens a generation whose whole id was entered, loaded or not; otherwise it moves to the first row. */
  #jump(event) {
    if (event.key === "ArrowDown" || (event.key === "Escape" && !event.target.value)) {
      event.preventDefault();
      return this.focus(this.#current || this.#shown[0]);
    }
    if (event.key !== "Enter") return;
    const text = event.target.value.trim();
    if (ID.test(text)) location.hash = `#/${text}`;
    else this.focus(this.#shown[0]);
  }

  /** Updates the check boxes after a choice made elsewhere. */
  mark() {
    for (const [id, { fields }] of this.#rows) fields.choose.checked = this.chosen.has(id);
    this.#markAll();
  }

  #markAll() {
    const count = this.#shown.filter((id) => this.chosen.has(id)).length;
    const box = byId("choose-all");
    box.checked = count > 0 && count === this.#shown.length;
    box.indeterminate = count > 0 && !box.checked;
  }
}
