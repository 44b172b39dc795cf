// The dashboard: a list of generations, a prompt box, and one generation followed live.
//
// What a model or a caller wrote gets into the page as text (textContent, Text nodes), never as markup.

const PAGE = 20; // generations listed at first, and more with each "Load more"
const POLL_MS = 2000;
const UNAUTHORISED = 401;
const ENDINGS = new Set(["completed", "failed", "cancelled", "gone"]);

const byId = (id) => document.getElementById(id);
const clone = (template) => byId(template).content.firstElementChild.cloneNode(true);
const pathOf = (id) => `/v1/generations/${id}`;

/** The elements of a cloned template, by their data-field. */
function fieldsOf(root) {
  return Object.fromEntries(Array.from(root.querySelectorAll("[data-field]"), (node) => [node.dataset.field, node]));
}

/** Sets a text; touches nothing that stays as it is. */
function show(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** The same for a message that is hidden while it is empty. */
function tell(node, text) {
  show(node, text);
  node.hidden = !text;
}

function showStatus(node, status) {
  show(node, status.replace("_", " "));
  node.dataset.status = status;
}

const moment = (seconds) => new Date(seconds * 1000);
const tokens = (usage, kind) => `${usage.estimated ? "≈ " : ""}${usage[`${kind}_tokens`] ?? 0}`;

function age(seconds) {
  const [unit, size] = [["d", 86400], ["h", 3600], ["min", 60]].find(([, size]) => seconds >= size) ?? ["s", 1];
  return `${Math.max(0, Math.floor(seconds / size))} ${unit} ago`;
}

const refused = (status, message) => Object.assign(new Error(message), { status });

/** What the gateway answers. Throws an error with its `status` where it refuses, with status 0 where it is away. */
async function ask(path, options = {}) {
  const response = await fetch(path, { ...options, signal: AbortSignal.timeout(10_000) }).catch(() => {
    throw refused(0, "The gateway does not answer.");
  });
  const body = await response.json().catch(() => null); // a proxy's own error page is no JSON
  if (response.ok && body) return body;
  const keyed = "This gateway asks for an API key. For now, this page needs an open gateway.";
  const message = response.status === UNAUTHORISED ? keyed : body?.error?.message;
  throw refused(response.status, message ?? "The gateway has failed.");
}

// --- one stream ---
const FINAL_ANSWERS = new Set([400, UNAUTHORISED, 403, 404, 410]);

/**
 * Takes the events of one generation up to the terminal one, over as many connections as that needs.
 *
 * A connection that breaks is the EventSource's business: it comes back with Last-Event-ID. It gives up for good on
 * any status but 200, a proxy's 502 for instance; that is taken up here, unless the gateway says that it is final.
 */
function follow(id, view) {
  let source = null;
  let cursor = "";
  let timer = 0;
  let over = false;

  function resume() {
    if (over || source) return;
    view.know({ connection: cursor ? "reconnecting" : "connecting" });
    source = new EventSource(`${pathOf(id)}/events${cursor && `?after=${cursor}`}`);
    source.onopen = () => view.know({ connection: "live" });
    source.onerror = ({ target }) => {
      view.know({ connection: "reconnecting" });
      if (target.readyState === EventSource.CLOSED) whenClosed();
    };
    for (const name of Object.keys(FACTS)) source.addEventListener(name, take);
  }

  /** A browser has six connections to a gateway, for all its tabs: a tab that is hidden gives its own back. */
  function pause() {
    clearTimeout(timer);
    source?.close();
    source = null;
  }

  function end() {
    pause();
    over = true;
    view.know({ connection: "ended" });
  }

  function take({ type, data, lastEventId }) {
    cursor = lastEventId || cursor; // a connection that we resumed begins without one
    view.take(type, JSON.parse(data), cursor);
    if (ENDINGS.has(type)) end();
  }

  async function whenClosed() {
    pause();
    const found = await ask(pathOf(id)).catch((error) => error); // `status`: the generation's, or the answer's
    if (FINAL_ANSWERS.has(found.status)) view.know({ error: found.message });
    if (FINAL_ANSWERS.has(found.status) || (ENDINGS.has(found.status) && found.cursor === cursor)) end();
    else if (!document.hidden) timer = setTimeout(resume, POLL_MS);
  }

  resume();
  return { resume, pause, end };
}

// --- one generation ---
/** What each event tells, beside the text. */
const FACTS = {
  created: ({ model, created_at }) => ({ status: "queued", model, created: created_at }),
  started: ({ attempt }) => ({ status: "in_progress", attempt }),
  reset: ({ attempt, reason }) => {
    const reset = `Begun again as attempt ${attempt} (${reason}). What was shown before is void.`;
    return { status: "in_progress", attempt, reset, gap: "", waiting: "", finish: "", usage: null };
  },
  waiting: ({ reason, retry_at }) => ({
    waiting: `Waiting for the upstream (${reason}) until ${moment(retry_at).toLocaleTimeString()}.`,
  }),
  chunk: ({ usage }) => ({ status: "in_progress", waiting: "", ...(usage && { usage }) }),
  completed: ({ finish_reason, usage }) => ({ status: "completed", waiting: "", finish: finish_reason, usage }),
  failed: ({ error }) => ({ status: "failed", waiting: "", error: `${error.code ?? error.type}: ${error.message}` }),
  cancelled: ({ usage }) => ({ status: "cancelled", waiting: "", usage }),
  gap: ({ earliest }) => ({ gap: `History is missing: the log was trimmed, and goes on at ${earliest}.` }),
  gone: () => ({ status: "gone", waiting: "", error: "This generation was deleted." }),
};

const BLOCK = 8192; // characters

/**
 * A text that only grows. It is broken into blocks at line ends: a browser lays out the whole block to which something
 * is added, so with one block each frame of a long answer would cost more than the one before.
 */
function growingText(parent) {
  let pending = "";
  let node = null;
  function write(text) {
    node ??= parent.appendChild(document.createElement("div")).appendChild(new Text());
    node.appendData(text);
  }
  function paint() {
    const cut = (node?.length ?? 0) + pending.length > BLOCK ? pending.lastIndexOf("\n") + 1 : 0;
    if (cut) {
      write(pending.slice(0, cut));
      node = null;
    }
    if (cut < pending.length) write(pending.slice(cut));
    pending = "";
  }
  return { push: (text) => void (pending += text), paint };
}

/** The pane of one generation. Events only change what is known; that is painted once per frame. */
class Detail {
  facts = { status: "" };
  parts = new Map(); // key → { section, text }, see part()
  frame = 0;
  attempt = ""; // whose text is shown

  constructor(id) {
    this.id = id;
    this.root = clone("detail");
    this.fields = fieldsOf(this.root);
    show(this.fields.id, id);
    show(this.fields.curl, `curl -N '${location.origin}${pathOf(id)}/events'`);
    this.fields.cancel.addEventListener("click", () => this.cancel());
    this.fields.copy.addEventListener("click", () => this.copy());
    this.stream = follow(id, this);
  }

  take(event, data, cursor) {
    const [attempt] = cursor.split("-");
    if (["reset", "chunk"].includes(event) && attempt !== this.attempt) {
      this.attempt = attempt;
      this.parts.clear();
      this.fields.output.replaceChildren();
    }
    for (const choice of data.choices ?? []) this.add(choice);
    this.know({ cursor, ...FACTS[event](data) });
    if (ENDINGS.has(event)) list.refresh();
  }

  know(facts) {
    Object.assign(this.facts, facts);
    this.frame ||= requestAnimationFrame(() => this.paint());
  }

  add({ index = 0, delta, finish_reason }) {
    if (finish_reason) this.facts.finish = finish_reason;
    const reasoning = delta?.reasoning_content ?? delta?.reasoning;
    if (reasoning) this.part(index, 0, "Reasoning").push(reasoning);
    if (delta?.content) this.part(index, 1, "Answer").push(delta.content);
    if (delta?.refusal) this.part(index, 2, "Refusal").push(delta.refusal);
    for (const call of delta?.tool_calls ?? []) {
      const place = 3 + (call.index ?? this.parts.size); // a call without an index is whole
      this.part(index, place, "Tool call: ", call.function?.name).push(call.function?.arguments ?? "");
    }
  }

  /** A part of the output, made when it is first needed, in its place among the others. */
  part(choice, place, title, more = "") {
    const key = choice * 1e6 + place;
    if (!this.parts.has(key)) {
      const section = clone("part");
      section.dataset.key = key;
      section.classList.toggle("answer", place === 1);
      section.firstElementChild.append(choice ? `${choice + 1}. ${title}` : title);
      const next = Array.from(this.fields.output.children).find((other) => other.dataset.key > key);
      this.fields.output.insertBefore(section, next ?? null);
      this.parts.set(key, { section, text: growingText(section.lastElementChild) });
    }
    const { section, text } = this.parts.get(key);
    if (more) section.firstElementChild.append(more);
    return text;
  }

  paint() {
    this.frame = 0;
    const { fields, facts } = this;
    const { status, connection, created, usage } = facts;
    showStatus(fields.status, status);
    show(fields.connection, connection);
    fields.connection.dataset.state = connection;
    for (const name of ["model", "attempt", "cursor", "finish"]) show(fields[name], String(facts[name] || "–"));
    for (const name of ["reset", "gap", "waiting", "error"]) tell(fields[name], facts[name] ?? "");
    show(fields.created, created ? moment(created).toLocaleString() : "–");
    show(fields.usage, usage ? `${tokens(usage, "prompt")} in, ${tokens(usage, "completion")} out` : "–");
    fields.cancel.hidden = connection === "ended" || ENDINGS.has(status);
    fields.output.ariaBusy = String(connection !== "ended");
    show(byId("announcement"), connection === "reconnecting" ? "Connection lost" : status.replace("_", " "));
    // Whoever has scrolled to the end stays there; whoever reads further up is left alone.
    const { scrollHeight, scrollTop, clientHeight } = fields.output;
    for (const { text } of this.parts.values()) text.paint();
    if (scrollHeight - scrollTop - clientHeight < 40) fields.output.scrollTop = fields.output.scrollHeight;
  }

  async cancel() {
    const refusal = ({ message }) => this.know({ error: `Not cancelled: ${message}` });
    this.fields.cancel.disabled = true;
    await ask(`${pathOf(this.id)}/cancel`, { method: "POST" }).catch(refusal); // the stream tells the rest
    this.fields.cancel.disabled = false;
  }

  async copy() {
    const { copy, curl } = this.fields;
    try {
      await navigator.clipboard.writeText(curl.textContent);
      show(copy, "Copied");
    } catch {
      // A page that came over plain HTTP from another machine has no clipboard: show and select it instead.
      curl.hidden = false;
      getSelection().selectAllChildren(curl);
    }
  }
}

// --- the list ---
const list = {
  rows: new Map(), // id → its <li>
  wanted: PAGE,
  round: 0,
  timer: 0,

  /** Reads the newest generations, now and then every two seconds for as long as the page is visible. */
  async refresh() {
    clearTimeout(this.timer);
    const round = ++this.round;
    let refusal = null;
    const read = await this.read().catch((error) => void (refusal = error));
    if (round !== this.round) return; // a later one is under way
    if (read) this.paint(...read);
    else if (!this.rows.size) tell(byId("list-state"), "");
    const denied = refusal?.status === UNAUTHORISED; // asking again would only fill the gateway's log
    tell(byId("trouble"), refusal ? refusal.message + (denied ? "" : " Trying again…") : "");
    if (!denied && !document.hidden) this.timer = setTimeout(() => this.refresh(), POLL_MS);
  },

  async read() {
    if (!prompt.models) await prompt.load();
    const generations = [];
    let page;
    do {
      const query = new URLSearchParams({ limit: Math.min(100, this.wanted - generations.length) });
      if (page) query.set("after", generations.at(-1).id);
      page = await ask(`/v1/generations?${query}`);
      generations.push(...page.data);
    } while (page.has_more && page.data.length && generations.length < this.wanted);
    return [generations, page.has_more];
  },

  /** Their order never changes, so rows only come and go: focus, selection and scroll position stay. */
  paint(generations, more) {
    const ids = new Set(generations.map(({ id }) => id));
    for (const [id, row] of this.rows) {
      if (!ids.has(id) && this.rows.delete(id)) row.remove();
    }
    let next = byId("list").firstElementChild;
    for (const generation of generations) {
      const row = this.rows.get(generation.id) ?? byId("list").insertBefore(clone("row"), next);
      this.rows.set(generation.id, row);
      this.fill(row, generation);
      next = row.nextElementSibling;
    }
    this.mark();
    byId("more").hidden = !more;
    tell(byId("list-state"), generations.length ? "" : "No generations yet. Send a prompt.");
  },

  fill(row, { id, status, model, created_at, attempt, usage }) {
    const fields = fieldsOf(row);
    row.firstElementChild.href = `#${id}`;
    showStatus(fields.status, status);
    show(fields.id, id);
    show(fields.model, model);
    show(fields.age, age(Date.now() / 1000 - created_at));
    fields.age.title = moment(created_at).toLocaleString();
    show(fields.attempt, attempt ? `attempt ${attempt}` : "not begun");
    show(fields.tokens, usage ? `${tokens(usage, "completion")} tokens` : "");
  },

  mark() {
    for (const [id, row] of this.rows) row.firstElementChild.ariaCurrent = id === detail?.id ? "true" : null;
  },
};

// --- the prompt ---
const prompt = {
  models: null,
  draft: { body: "", key: "" },

  /** A gateway that serves patterns only names no model; then it is typed in. */
  async load() {
    this.models = (await ask("/v1/models")).data.map(({ id }) => id);
    const [menu, field] = [byId("model"), byId("model-name")];
    menu.replaceChildren(...this.models.map((id) => new Option(id)));
    field.hidden = this.models.length > 0;
    field.required = menu.hidden = !field.hidden;
  },

  async send() {
    const model = byId("model").value || byId("model-name").value;
    const body = JSON.stringify({ model, messages: [{ role: "user", content: byId("prompt").value }] });
    // Sent again after an answer that never came, it is still the same generation.
    if (this.draft.body !== body) this.draft = { body, key: crypto.getRandomValues(new Uint32Array(4)).join("-") };
    const headers = { "content-type": "application/json", "idempotency-key": this.draft.key };
    byId("send").disabled = true;
    try {
      location.hash = (await ask("/v1/generations", { method: "POST", headers, body })).id;
      this.draft = { body: "", key: "" };
      tell(byId("prompt-error"), "");
      list.refresh();
    } catch (error) {
      tell(byId("prompt-error"), error.message);
    }
    byId("send").disabled = false;
  },
};

byId("prompt-form").addEventListener("submit", (event) => {
  event.preventDefault();
  prompt.send();
});
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("send").click();
});

// --- the page ---
let detail = null;
const nothing = byId("main").firstElementChild;

/** `#gen_…` says which generation is shown. */
function select() {
  const id = location.hash.match(/^#(gen_[0-9a-z]{34})$/)?.[1];
  if (id === detail?.id) return;
  detail?.stream.end();
  detail = id ? new Detail(id) : null;
  byId("main").replaceChildren(detail?.root ?? nothing);
  if (detail && matchMedia("(max-width: 50rem)").matches) byId("main").scrollIntoView();
  list.mark();
}

addEventListener("hashchange", select);
byId("more").addEventListener("click", () => {
  list.wanted += PAGE;
  list.refresh();
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return detail?.stream.pause();
  detail?.stream.resume();
  list.refresh();
});
select();
list.refresh();
