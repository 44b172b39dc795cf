// The dashboard: a list of generations, a prompt box, and one generation followed live.
//
// Everything a model or a caller wrote is put into the page as text (textContent, Text nodes), never as markup.

const PAGE = 20; // generations listed at first, and more with each "Load more"
const POLL_MS = 2000;
const BLOCK = 8192; // characters; see GrowingText
const UNAUTHORISED = 401;
const FINAL_STATUSES = new Set(["completed", "failed", "cancelled", "gone"]);

const byId = (id) => document.getElementById(id);
const clone = (template) => byId(template).content.firstElementChild.cloneNode(true);

/** The elements of a cloned template, by their data-field. */
function fieldsOf(root) {
  return Object.fromEntries(Array.from(root.querySelectorAll("[data-field]"), (node) => [node.dataset.field, node]));
}

/** Sets a text and hides what is empty where that is asked for; touches nothing that stays as it is. */
function show(node, text, { hide = false } = {}) {
  if (node.textContent !== text) node.textContent = text;
  if (hide && node.hidden !== !text) node.hidden = !text;
}

function showStatus(node, status) {
  show(node, (status ?? "").replace("_", " "));
  if (node.dataset.status !== (status ?? "")) node.dataset.status = status ?? "";
}

function announce(text) {
  show(byId("announcement"), text);
}

// --- the gateway -------------------------------------------------------------------------------------------------------

class Refused extends Error {
  /** `status` is 0 where there was no answer at all. */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, signal: AbortSignal.timeout(10_000) });
  } catch {
    throw new Refused(0, "The gateway does not answer.");
  }
  const body = await response.json().catch(() => null); // a proxy's own error page is no JSON
  if (response.status === UNAUTHORISED) {
    throw new Refused(UNAUTHORISED, "This gateway asks for an API key. For now, this page needs an open gateway.");
  }
  if (!response.ok || body === null) {
    throw new Refused(response.status, body?.error?.message ?? `The gateway answers ${response.status}.`);
  }
  return body;
}

const pathOf = (id) => `/v1/generations/${id}`;

// --- in words ----------------------------------------------------------------------------------------------------------

function age(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.floor(seconds))} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

const moment = (seconds) => new Date(seconds * 1000);
const about = (usage) => (usage.estimated ? "≈ " : "");

function usageText(usage) {
  if (!usage) return "";
  const counts = [`${usage.prompt_tokens ?? 0} in`, `${usage.completion_tokens ?? 0} out`];
  const reasoning = usage.completion_tokens_details?.reasoning_tokens;
  if (reasoning) counts.push(`${reasoning} of them reasoning`);
  return about(usage) + counts.join(", ");
}

// --- one connection ----------------------------------------------------------------------------------------------------

const EVENTS = ["created", "started", "reset", "waiting", "chunk", "completed", "failed", "cancelled", "gap", "gone"];
const OURS_TO_GIVE_UP = new Set([400, UNAUTHORISED, 403, 404, 410]);

/**
 * The events of one generation, from the first to the terminal one, over as many connections as that takes.
 *
 * `view` has a method for each event, `connection(state)` and `lost(error)`. A connection that breaks is the
 * EventSource's own business: it comes back with Last-Event-ID. What it gives up on (any status but 200) is
 * taken up here, unless the gateway says that there is nothing more to come.
 */
class Stream {
  #id;
  #view;
  #cursor = "";
  #source = null;
  #timer = 0;
  #over = false;

  constructor(id, view) {
    this.#id = id;
    this.#view = view;
    this.resume();
  }

  resume() {
    if (this.#over || this.#source) return;
    this.#view.connection(this.#cursor ? "reconnecting" : "connecting");
    const source = new EventSource(`${pathOf(this.#id)}/events${this.#cursor && `?after=${this.#cursor}`}`);
    source.onopen = () => this.#view.connection("live");
    source.onerror = () => {
      this.#view.connection("reconnecting");
      if (source.readyState === EventSource.CLOSED) this.#refused();
    };
    for (const name of EVENTS) source.addEventListener(name, (event) => this.#take(name, event));
    this.#source = source;
  }

  /** A browser has six connections per origin, for all its tabs: one that nobody looks at gives its own back. */
  pause() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  }

  end() {
    this.pause();
    this.#over = true;
    this.#view.connection("ended");
  }

  #take(name, event) {
    if (event.lastEventId) this.#cursor = event.lastEventId; // `gap` and `gone` may have none of their own
    this.#view[name](JSON.parse(event.data), this.#cursor);
    if (FINAL_STATUSES.has(name)) this.end();
  }

  async #refused() {
    this.pause();
    try {
      const generation = await ask(pathOf(this.#id));
      this.#view.known(generation);
      if (FINAL_STATUSES.has(generation.status) && generation.cursor === this.#cursor) return this.end();
    } catch (error) {
      if (OURS_TO_GIVE_UP.has(error.status)) {
        this.#view.lost(error);
        return this.end();
      }
    }
    if (!document.hidden) this.#timer = setTimeout(() => this.resume(), POLL_MS);
  }
}

// --- what one generation shows -----------------------------------------------------------------------------------------

/**
 * A text that only grows, painted in pieces. It is broken into blocks at line ends, since a browser lays out the whole
 * block that a character was added to: with one block, each frame of a long answer would cost more than the one before.
 */
class GrowingText {
  #parent;
  #last;
  #pending = "";

  constructor(parent) {
    this.#parent = parent;
    this.#begin();
  }

  push(text) {
    this.#pending += text;
  }

  paint() {
    if (!this.#pending) return;
    const text = this.#pending;
    const cut = this.#last.length + text.length > BLOCK ? text.lastIndexOf("\n") + 1 : 0;
    if (cut) {
      this.#last.appendData(text.slice(0, cut));
      this.#begin();
    }
    this.#last.appendData(text.slice(cut));
    this.#pending = "";
  }

  #begin() {
    this.#last = document.createTextNode("");
    const block = document.createElement("div");
    block.append(this.#last);
    this.#parent.append(block);
  }
}

/** The detail pane of one generation. Events only change what is known; it is painted once per frame. */
class Detail {
  #fields;
  #facts = { status: "" };
  #parts = new Map(); // key → { text, section }; see #part
  #frame = 0;
  #announced = "";

  constructor(id) {
    this.id = id;
    this.root = clone("detail");
    this.#fields = fieldsOf(this.root);
    this.#fields.id.textContent = id;
    this.#fields.curl.textContent = `curl -N '${location.origin}${pathOf(id)}/events'`;
    this.#fields.cancel.addEventListener("click", () => this.#cancel());
    this.#fields.copy.addEventListener("click", () => this.#copy());
    byId("main").replaceChildren(this.root);
    this.stream = new Stream(id, this);
  }

  close() {
    this.stream.end();
    cancelAnimationFrame(this.#frame);
  }

  // The events of the contract.

  created({ model, created_at }, cursor) {
    this.#know({ status: "queued", model, created: created_at, cursor });
  }

  started({ attempt }, cursor) {
    this.#know({ status: "in_progress", attempt, cursor });
  }

  reset({ attempt, reason }, cursor) {
    this.#forgetText();
    const text =
      reason === "unknown_cursor"
        ? "The gateway lost our place: everything is shown again from the start."
        : `Attempt ${attempt} began (${reason}). What the one before had written is void.`;
    this.#know({ status: "in_progress", attempt, cursor, reset: text, gap: "", waiting: "" });
  }

  waiting({ reason, retry_at }, cursor) {
    const until = retry_at ? ` Next try at ${moment(retry_at).toLocaleTimeString()}.` : "";
    this.#know({ cursor, waiting: `The upstream is busy (${reason}).${until}` });
  }

  chunk({ choices, usage }, cursor) {
    for (const choice of choices ?? []) this.#choice(choice);
    this.#know(usage ? { cursor, usage, waiting: "" } : { cursor, waiting: "" });
  }

  completed({ finish_reason, usage }, cursor) {
    this.#know({ status: "completed", cursor, finish: finish_reason, usage: usage ?? this.#facts.usage, waiting: "" });
  }

  failed({ error }, cursor) {
    this.#know({ status: "failed", cursor, error: `${error.code ?? error.type}: ${error.message}`, waiting: "" });
  }

  cancelled({ usage }, cursor) {
    this.#know({ status: "cancelled", cursor, usage, waiting: "" });
  }

  gap({ requested, earliest, latest }) {
    // Where the next attempt's beginning is missing, what is shown belongs to one that was withdrawn.
    const [attempt, seq] = earliest.split("-");
    if (attempt !== requested.split("-")[0] && seq !== "0") this.#forgetText();
    this.#know({ gap: `History is missing here: it goes on at ${earliest} (the newest is ${latest}).` });
    ask(pathOf(this.id)).then((generation) => this.known(generation), () => {});
  }

  gone() {
    this.#know({ status: "gone", error: "This generation was deleted.", waiting: "" });
  }

  // What the stream says of itself, and what was asked for besides it.

  connection(state) {
    this.#know({ connection: state });
  }

  lost(error) {
    this.#know({ error: error.message });
  }

  known({ status, model, created_at, attempt, usage }) {
    if (!FINAL_STATUSES.has(this.#facts.status)) this.#know({ status, model, created: created_at, attempt, usage });
  }

  #choice({ index = 0, delta, finish_reason }) {
    if (finish_reason) this.#know({ finish: finish_reason });
    if (!delta) return;
    const reasoning = delta.reasoning_content ?? delta.reasoning;
    if (reasoning) this.#part(index, 0, "Reasoning").push(reasoning);
    if (delta.content) this.#part(index, 1, "Answer").push(delta.content);
    if (delta.refusal) this.#part(index, 2, "Refusal").push(delta.refusal);
    for (const call of delta.tool_calls ?? []) {
      const slot = call.index ?? this.#parts.size; // one without an index is whole
      const part = this.#part(index, 3 + slot, "Tool call ", call.function?.name);
      part.push(call.function?.arguments ?? "");
    }
  }

  /** The text of a part, made when it is first needed: in order of choice, then of rank within the choice. */
  #part(choice, rank, title, more = "") {
    const key = choice * 1e6 + rank;
    let part = this.#parts.get(key);
    if (!part) {
      const section = clone("part");
      section.firstElementChild.textContent = choice ? `${choice + 1}. ${title}` : title;
      part = { section, text: new GrowingText(section.lastElementChild) };
      const next = Math.min(...Array.from(this.#parts.keys()).filter((other) => other > key));
      this.#fields.output.insertBefore(section, this.#parts.get(next)?.section ?? null);
      this.#parts.set(key, part);
    }
    if (more) part.section.firstElementChild.append(more);
    return part.text;
  }

  #forgetText() {
    this.#parts.clear();
    this.#fields.output.replaceChildren();
    this.#know({ finish: "", usage: null });
  }

  #know(facts) {
    Object.assign(this.#facts, facts);
    this.#frame ||= requestAnimationFrame(() => this.#paint());
  }

  #paint() {
    this.#frame = 0;
    const { status, connection, model, created, attempt, cursor, finish, usage, ...notes } = this.#facts;
    const fields = this.#fields;
    showStatus(fields.status, status);
    show(fields.connection, connection);
    fields.connection.dataset.state = connection;
    const words = { model, attempt, cursor, finish, usage: usageText(usage), created: created && moment(created).toLocaleString() };
    for (const [name, value] of Object.entries(words)) show(fields[name], String(value || "–"));
    for (const name of ["reset", "gap", "waiting", "error"]) show(fields[name], notes[name] ?? "", { hide: true });
    fields.cancel.hidden = !["queued", "in_progress"].includes(status) || connection === "ended";
    fields.output.ariaBusy = String(connection !== "ended");
    this.#paintText();
    const announcement = connection === "reconnecting" ? "Connection lost, reconnecting" : status.replace("_", " ");
    if (announcement !== this.#announced) announce(announcement);
    this.#announced = announcement;
  }

  /** Whoever has scrolled to the end stays there; whoever reads further up is left alone. */
  #paintText() {
    const output = this.#fields.output;
    const atEnd = output.scrollHeight - output.scrollTop - output.clientHeight < 40;
    for (const part of this.#parts.values()) part.text.paint();
    if (atEnd) output.scrollTop = output.scrollHeight;
  }

  async #cancel() {
    this.#fields.cancel.disabled = true;
    try {
      await ask(`${pathOf(this.id)}/cancel`, { method: "POST" }); // the stream tells the rest
      list.refresh();
    } catch (error) {
      this.#know({ error: `Not cancelled: ${error.message}` });
    }
    this.#fields.cancel.disabled = false;
  }

  async #copy() {
    const { copy, curl } = this.#fields;
    try {
      await navigator.clipboard.writeText(curl.textContent);
      copy.textContent = "Copied";
    } catch {
      // Pages that came over plain HTTP from another machine have no clipboard: it is shown and selected instead.
      curl.hidden = false;
      getSelection().selectAllChildren(curl);
    }
  }
}

// --- the list ----------------------------------------------------------------------------------------------------------

class List {
  #rows = new Map(); // id → { node, fields }
  #wanted = PAGE;
  #timer = 0;
  #asked = 0;

  constructor() {
    byId("more").addEventListener("click", () => {
      this.#wanted += PAGE;
      this.refresh();
    });
  }

  /** Reads the newest generations, now and then every two seconds for as long as somebody looks. */
  async refresh() {
    clearTimeout(this.#timer);
    const asked = ++this.#asked;
    let trouble = "";
    let again = true;
    try {
      if (!models.known) await models.load();
      const [generations, more] = await this.#read();
      if (asked !== this.#asked) return; // another one is under way
      this.#show(generations, more);
    } catch (error) {
      if (asked !== this.#asked) return;
      again = error.status !== UNAUTHORISED; // each would be a line in the gateway's log
      trouble = again ? `${error.message} Trying again…` : error.message;
      if (!this.#rows.size) show(byId("list-state"), "", { hide: true });
    }
    show(byId("trouble"), trouble, { hide: true });
    byId("prompt-fields").disabled = !again;
    if (again && !document.hidden) this.#timer = setTimeout(() => this.refresh(), POLL_MS);
  }

  async #read() {
    const generations = [];
    let page;
    do {
      const query = new URLSearchParams({ limit: Math.min(100, this.#wanted - generations.length) });
      if (generations.length) query.set("after", generations.at(-1).id);
      page = await ask(`/v1/generations?${query}`);
      generations.push(...page.data);
    } while (page.has_more && page.data.length && generations.length < this.#wanted);
    return [generations, page.has_more];
  }

  /** Their order never changes, so rows only come and go: focus, selection and scroll position stay. */
  #show(generations, more) {
    const ids = new Set(generations.map(({ id }) => id));
    for (const [id, row] of this.#rows) {
      if (!ids.has(id)) row.node.remove(), this.#rows.delete(id);
    }
    let before = byId("list").firstElementChild;
    for (const generation of generations) {
      const row = this.#rows.get(generation.id) ?? this.#add(generation.id, before);
      this.#fill(row.fields, generation);
      before = row.node.nextElementSibling;
    }
    this.mark();
    byId("more").hidden = !more;
    show(byId("list-state"), generations.length ? "" : "No generations yet. Send a prompt.", { hide: true });
  }

  #add(id, before) {
    const node = clone("row");
    node.firstElementChild.href = `#${id}`;
    byId("list").insertBefore(node, before);
    const row = { node, fields: fieldsOf(node) };
    this.#rows.set(id, row);
    return row;
  }

  #fill(fields, { id, status, model, created_at, attempt, usage }) {
    showStatus(fields.status, status);
    show(fields.id, id);
    show(fields.model, model);
    show(fields.age, `${age(Date.now() / 1000 - created_at)} ago`);
    fields.age.dateTime = moment(created_at).toISOString();
    fields.age.title = moment(created_at).toLocaleString();
    show(fields.attempt, attempt ? `attempt ${attempt}` : "no attempt yet");
    show(fields.tokens, usage ? `${about(usage)}${usage.completion_tokens ?? 0} tokens` : "");
  }

  /** Shows which one is selected. */
  mark() {
    for (const [id, { node }] of this.#rows) {
      if (id === detail?.id) node.firstElementChild.ariaCurrent = "true";
      else node.firstElementChild.ariaCurrent = null;
    }
  }
}

// --- the prompt --------------------------------------------------------------------------------------------------------

const models = {
  known: false,

  /** Where the gateway takes any model and names none, its name is typed in. */
  async load() {
    const { data } = await ask("/v1/models");
    byId("model").replaceChildren(...data.map(({ id }) => new Option(id)));
    byId("model").hidden = !data.length;
    byId("model-name").hidden = byId("model-name").required = data.length > 0;
    byId("model-name").required = !data.length;
    this.known = true;
  },

  get chosen() {
    return byId("model").value || byId("model-name").value.trim();
  },
};

let draft = { body: "", key: "" };

async function send() {
  const body = JSON.stringify({ model: models.chosen, messages: [{ role: "user", content: byId("prompt").value }] });
  // Sent again after an answer that never came, it is still the same generation.
  if (draft.body !== body) draft = { body, key: crypto.getRandomValues(new Uint32Array(4)).join("-") };
  byId("prompt-fields").disabled = true;
  try {
    const headers = { "content-type": "application/json", "idempotency-key": draft.key };
    const { id } = await ask("/v1/generations", { method: "POST", headers, body });
    draft = { body: "", key: "" };
    show(byId("prompt-error"), "", { hide: true });
    location.hash = id;
    list.refresh();
  } catch (error) {
    show(byId("prompt-error"), error.message, { hide: true });
  }
  byId("prompt-fields").disabled = false;
  byId("prompt").focus({ preventScroll: true });
}

byId("prompt-form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("prompt-form").requestSubmit();
});

// --- the page ----------------------------------------------------------------------------------------------------------

let detail = null;
const nothing = byId("main").firstElementChild;
const list = new List();

/** `#gen_…` says which generation is shown. */
function select() {
  const [, id] = location.hash.match(/^#(gen_[0-9a-z]{34})$/) ?? [];
  if (id === detail?.id) return;
  detail?.close();
  detail = id ? new Detail(id) : null;
  if (!detail) byId("main").replaceChildren(nothing);
  else if (matchMedia("(max-width: 50rem)").matches) byId("main").scrollIntoView();
  list.mark();
}

addEventListener("hashchange", select);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return detail?.stream.pause();
  detail?.stream.resume();
  list.refresh();
});
select();
list.refresh();
