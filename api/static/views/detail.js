// The details of one generation: followed live, and replayed with its recorded timing.

import { oncePerFrame } from "../data/frames.js";
import { ENDINGS, UNAUTHORISED, ask, enqueue, insist, newKey, now, pathOf } from "../data/gateway.js";
import { Place } from "../data/place.js";
import { Recording } from "../data/recording.js";
import { Attempts } from "../detail/attempts.js";
import { Edit } from "../detail/edit.js";
import { kinds, save } from "../detail/files.js";
import { GrowingText, Output } from "../ui/output.js";
import { announce, byId, clone, copy, duration, fieldsOf, make, moment } from "../ui/page.js";
import { rate, show, showStatus, tell, tokens } from "../ui/page.js";
import { again, follow } from "../ui/snippets.js";
import { mountSubscribers } from "../ui/subscribers.js";
import { Marks, Player, Timeline } from "../ui/timeline.js";
import { CALLED, interruption, sentence, silentWorker } from "../ui/waiting.js";

const PAGE = 1000; // events
const DEFAULT_PRIORITY = 3;
const COPIED = 3000; // ms for which a button says that it has copied
const RENDERED = "tokencast-rendered";
const edit = new Edit();

export class Detail {
  recording = new Recording();
  connection = "connecting";
  #trouble = ""; // the gateway's refusal, in addition to errors in the events
  #failure = ""; // of the latest action, until the next one or until the generation changes
  #excuse = ""; // why there is no stream at the moment, if the gateway gave a reason
  #request = null;
  #options = {}; // of Tokencast, which are no part of the request
  #model = "–"; // used if the event with the model was trimmed
  #announced = "";
  #raw = 0; // number of events in the list of raw events,
  #epoch = 0; // and the epoch of the recording they belong to
  #abort = new AbortController();
  #marks = new Marks();
  #newKey = newKey();

  /** @param {string} id  @param {{at?: string}} options  `at`: cursor of the moment to show */
  constructor(id, { follower, chosen, overview, at = "" }) {
    Object.assign(this, { id, follower, chosen, overview });
    this.root = clone("detail");
    this.fields = fieldsOf(this.root);
    this.player = new Player(this.recording, () => this.#onMove());
    this.paint = oncePerFrame(() => this.#paint());
    this.output = new Output(this.fields.output);
    this.rawText = new GrowingText(this.fields.raw);
    this.place = new Place(id, () => this.paint());
    this.timeline = new Timeline(this.fields.strip, this.fields.marks, (number) => this.player.seekTo(number));
    this.attempts = new Attempts(this.fields, this.recording, (number) => this.player.seekTo(number));
    show(this.fields.id, id);
    mountSubscribers(this.root.querySelector("aside"), id);
    this.#listen();
    this.#render(localStorage.getItem(RENDERED) === "yes");
    this.#load(at).catch((error) => this.#refused(error));
    this.paint();
  }

  close() {
    this.#abort.abort();
    this.follower.leave(this.id);
    edit.close();
    if (this.player.playing) this.player.pause();
  }

  #listen() {
    const { fields, player } = this;
    const on = (name, act, event = "click") => fields[name].addEventListener(event, act);
    const cancel = () => ask(`${pathOf(this.id)}/cancel`, { method: "POST" });
    on("cancel", () => this.#act("cancel", "Cancelling failed", cancel));
    on("delete", () => this.#delete());
    on("retry", () => this.#act("retry", "Retrying failed", () => this.#retry()));
    on("edit", () => edit.open({ ...this.#request, ...this.#options }));
    on("choose", () => this.chosen.set(this.id, !this.chosen.has(this.id)));
    for (const language of Object.keys(follow)) {
      on(`copy-${language}`, () => this.#copy(`copy-${language}`, follow[language](this.id)));
      on(`again-${language}`, () => this.#copy(`again-${language}`, again[language](this.#request)));
    }
    on("copy-text", () => this.#copy("copy-text", this.recording.attemptAt(player.count).text(player.count)));
    on("link", () => this.#copy("link", this.#address()));
    for (const kind of kinds) {
      on(`save-${kind}`, () => this.#act(`save-${kind}`, "Saving failed", () => save(kind, this.id, this.recording)));
    }
    on("rendered", () => {
      const rendered = fields.rendered.ariaPressed !== "true";
      localStorage.setItem(RENDERED, rendered ? "yes" : "");
      this.#render(rendered);
    });
    on("play", () => (player.playing ? player.pause() : player.play()));
    on("end", () => player.end());
    on("speed", () => {
      player.speed = Number(fields.speed.value);
      if (player.playing) player.play();
    }, "input");
    on("scrub", () => player.seek(this.recording.from + Number(fields.scrub.value)), "input");
    on("events", () => this.#paintRaw(), "toggle");
  }

  // --- stored and live events ---

  async #load(at) {
    const { signal } = this.#abort;
    const away = ({ message }) => this.state("reconnecting", message);
    const known = await insist(`${pathOf(this.id)}?include=request`, signal, away);
    this.#showRequest(known);
    this.output.following = !ENDINGS.has(known.status); // show an ended one from its beginning
    let after = "";
    for (let more = true; more; ) {
      const page = await insist(`${pathOf(this.id)}/events?limit=${PAGE}${after && `&after=${after}`}`, signal, away);
      if (signal.aborted) return;
      if (!after && page.data[0]?.id !== "0-1") this.#missing(page.data[0]);
      for (const event of page.data) this.recording.push(event, now());
      after = page.data.at(-1)?.id ?? after;
      more = page.has_more;
      this.paint();
    }
    this.place.begin(known, this.recording);
    if (at) this.goTo(at);
    const ended = this.recording.length && ENDINGS.has(this.recording.events.at(-1).event);
    if (ended) this.state("ended");
    else this.follower.follow(this.id, this, after);
  }

  #missing(first) {
    if (first) this.recording.push({ id: first.id, event: "gap", data: { earliest: first.id }, at: first.at }, now());
  }

  #refused(error) {
    if (this.#abort.signal.aborted) return;
    if (error.status === UNAUTHORISED) return; // the page asks for a key
    this.#trouble = error.message;
    this.state("ended");
    if (error.status === undefined) throw error;
  }

  take(event) {
    if (event.event !== "chunk") this.#failure = "";
    this.recording.push(event, now());
    this.place.take(event);
    this.paint();
  }

  /** Called every two seconds while the page is visible. */
  tick() {
    if (this.connection === "live") this.place.refresh(this.recording, this.recording.silence(now()));
    this.paint();
  }

  state(state, message = "") {
    this.connection = state === "refused" ? "ended" : state;
    if (state === "reconnecting") this.#excuse = message && `${message} Retrying…`;
    else [this.#excuse, this.#trouble] = ["", message || this.#trouble];
    this.paint();
  }

  // --- actions ---

  async #act(name, otherwise, act) {
    this.fields[name].disabled = true;
    this.#failure = "";
    await act().catch((error) => (this.#failure = `${otherwise}: ${error.message}`)); // the stream reports success
    this.fields[name].disabled = false;
    this.paint();
  }

  /** Deletes at the second click. */
  #delete() {
    const { delete: button } = this.fields;
    if (!button.dataset.sure) {
      button.dataset.sure = "yes";
      show(button, "Delete permanently?");
      button.addEventListener("blur", () => this.#unsure(), { once: true });
      return;
    }
    this.#unsure();
    this.#act("delete", "Deleting failed", async () => {
      await ask(pathOf(this.id), { method: "DELETE" });
      if (this.connection !== "ended") return; // the stream reports it
      this.take({ id: this.recording.events.at(-1)?.id ?? "0-1", event: "gone", data: {} });
    });
  }

  #unsure() {
    delete this.fields.delete.dataset.sure;
    show(this.fields.delete, "Delete");
  }

  /** Repeats one that has ended with all its options, and one that still runs, or was deleted, with its request. */
  async #retry() {
    const headers = { "idempotency-key": this.#newKey };
    const { status } = this.recording.facts();
    const ended = ENDINGS.has(status) && status !== "gone";
    const again = () => ask(`${pathOf(this.id)}/retry`, { method: "POST", headers });
    location.hash = `#/${(await (ended ? again() : enqueue(this.#request, this.#newKey))).id}`;
    this.#newKey = newKey();
  }

  /** The address of the moment that is shown. */
  #address() {
    const { id } = this.recording.events[this.player.count - 1] ?? {};
    return `${location.origin}/#/${this.id}${id ? `?at=${id}` : ""}`;
  }

  /** Shows the moment of the event with that cursor. */
  goTo(cursor) {
    const number = this.recording.numberOf(cursor);
    if (number >= 0) return this.player.seekTo(number);
    this.#failure = `The log has no event ${cursor}. It may have been trimmed.`;
    this.paint();
  }

  /** Moves to the mark of the timeline before (-1) or after (1) the position. */
  toMark(direction) {
    const number = this.#marks.next(this.player.count, direction);
    if (number !== undefined) this.player.seekTo(number);
  }

  /** Shows the output as rendered Markdown, or as it is. */
  async #render(on) {
    this.fields.rendered.ariaPressed = String(on);
    try {
      const { RenderedCall, RenderedText } = on ? await import("../detail/markdown.js") : {};
      if (on !== (this.fields.rendered.ariaPressed === "true")) return; // clicked again meanwhile
      const rendered = (parent, { isCall }) => (isCall ? new RenderedCall(parent) : new RenderedText(parent));
      this.output.showAs(on ? rendered : (parent) => new GrowingText(parent));
    } catch (error) {
      this.#failure = `Rendering failed: ${error.message}`;
      this.fields.rendered.ariaPressed = "false";
    }
    this.paint();
  }

  async #copy(name, text) {
    const button = this.fields[name];
    const { code } = this.fields;
    show(code, text);
    code.hidden = await copy(text);
    for (const other of this.root.querySelectorAll("[data-done]")) delete other.dataset.done;
    if (!code.hidden) return getSelection().selectAllChildren(code);
    button.dataset.done = "yes";
    setTimeout(() => delete button.dataset.done, COPIED);
    announce("Copied");
  }

  /** Called by the player when its position changes: shows the output up to then, scrolled to its end. */
  #onMove() {
    if (this.player.position !== null) this.output.following = true;
    this.paint();
  }

  // --- rendering ---

  #showRequest({ request, metadata, model, priority, group, retry_of: origin }) {
    const { fields } = this;
    this.#model = model;
    const options = { ...(priority !== DEFAULT_PRIORITY && { priority }), ...(group && { group }) };
    if (Object.keys(options).length) this.#options = { tokencast: options };
    fields.origin.hidden = !origin;
    if (origin) fields.retry_of.href = `#/${origin}`;
    show(fields.retry_of, origin ? `…${origin.slice(-6)}` : "");
    if (!request) return; // a long request of a cancelled generation is not kept
    const { messages, metadata: labels, ...others } = request;
    this.#request = request;
    for (const { role, content, ...more } of messages) {
      const plain = typeof content === "string" && !Object.keys(more).length;
      const text = plain ? content : JSON.stringify({ content, ...more }, null, 2);
      fields.messages.append(make("h4", {}, role), make("div", { className: "text" }, text));
    }
    show(fields.parameters, JSON.stringify(others, null, 2));
    for (const [name, value] of Object.entries(metadata)) {
      fields.metadata.append(make("div", {}, make("dt", {}, name), make("dd", {}, value)));
    }
    fields.request.hidden = fields.retry.hidden = fields.edit.hidden = false;
  }

  #paint() {
    const { fields, recording, player, connection } = this;
    const { count } = player;
    const facts = recording.facts(count);
    const { created, usage } = facts;
    const replayed = player.position !== null;
    const interrupted = replayed ? "" : this.place.interrupted;
    const status = interrupted ? "queued" : facts.status;
    showStatus(fields.status, status);
    show(fields.connection, replayed ? "replay" : connection);
    fields.connection.dataset.state = fields.connection.textContent;
    show(fields.model, facts.model ?? this.#model);
    const figures = recording.figures(count);
    for (const name of ["attempt", "finish"]) show(fields[name], String(facts[name] || "–"));
    show(fields.cursor, recording.events[count - 1]?.id ?? "–");
    for (const name of ["reset", "gap"]) tell(fields[name], facts[name] ?? "");
    tell(fields.waiting, this.#waiting(replayed ? facts.waiting : this.place.queue, interrupted));
    const silence = replayed || connection !== "live" ? "" : this.#silence();
    tell(fields.silence, silence);
    tell(fields.excuse, this.#excuse);
    tell(fields.error, this.#failure || this.#trouble || (facts.error ?? ""));
    show(fields.created, created ? moment(created).toLocaleString() : "–");
    const soFar = figures.chunks ? `≈ ${figures.chunks} out` : "–";
    show(fields.usage, usage ? `${tokens(usage, "prompt")} in, ${tokens(usage, "completion")} out` : soFar);
    show(fields.subscribers, String(this.overview.subscribers[this.id] ?? "–"));
    fields.cancel.hidden = connection === "ended" || ENDINGS.has(recording.facts().status);
    fields.delete.hidden = !recording.length || recording.facts().status === "gone";
    fields.choose.ariaPressed = String(this.chosen.has(this.id));
    fields.output.ariaBusy = String(connection !== "ended");
    fields.output.toggleAttribute("data-writing", player.playing || (!replayed && status === "in_progress"));
    const news = this.#news(status, interrupted, silence);
    if (!replayed) this.#announce(connection === "reconnecting" ? "Connection lost" : news);
    document.title = `${status.replace("_", " ")} · ${this.id}`;
    this.#paintTimes(count, figures);
    this.attempts.paint(count);
    this.output.show(recording, count); // last, when the layout above it is settled
    if (!fields.output.hasAttribute("data-writing")) this.output.settle();
    this.#paintRaw();
  }

  #waiting(queue, interrupted) {
    if (interrupted) return interruption(interrupted, queue, this.place.upstreams);
    if (queue) return sentence(queue, this.place.upstreams);
    const called = this.player.position === null && this.recording.facts().status === "queued" && this.place.lease;
    return called ? CALLED : "";
  }

  /** What is unusual about the silence of a worker, or of a running attempt. */
  #silence() {
    const lost = silentWorker(this.place.lease, now());
    const silence = this.place.interrupted ? 0 : this.recording.unusualSilence(now());
    if (lost || !silence) return lost;
    return `No token for ${duration(silence)}.${this.place.lease ? " The worker is alive." : ""}`;
  }

  /** What is announced: once, without the seconds that grow. */
  #news(status, interrupted, silence) {
    if (interrupted) return this.fields.waiting.textContent;
    return silence ? silence.replace(/ for [\d.]+ .*$/, "") : status.replace("_", " ");
  }

  #announce(text) {
    if (text !== this.#announced) announce(text);
    this.#announced = text;
  }

  /** @param {import("../data/recording.js").Figures} figures  of the attempt that is shown */
  #paintTimes(count, { first, took, rate: speed }) {
    const { fields, recording, player } = this;
    this.#marks.update(recording);
    const { from, until } = recording;
    show(fields.first, first === null ? "–" : duration(first));
    show(fields.took, took === null ? "–" : duration(took));
    show(fields.rate, speed ? rate(speed) : "–");
    this.timeline.paint(this.#marks.all, recording, player.time);
    fields.player.hidden = recording.length < 2;
    fields.scrub.max = until - from;
    fields.scrub.value = player.time - from;
    fields.scrub.ariaValueText = `${duration(player.time - from)} of ${duration(until - from)}`;
    show(fields.time, `${duration(player.time - from)} / ${duration(until - from)}`);
    show(fields.number, `event ${count} of ${recording.length}`);
    show(fields.play, player.playing ? "Pause" : "Play");
    fields.play.dataset.playing = String(player.playing);
    show(fields.end, this.connection === "ended" ? "To the end" : "Live");
    fields.end.disabled = player.position === null;
  }

  /** Renders the raw events only if they are visible: a long generation has megabytes of them. */
  #paintRaw() {
    const { fields, recording } = this;
    if (!fields.events.open) return;
    if (recording.epoch !== this.#epoch) {
      this.rawText.clear();
      this.#raw = 0;
    }
    this.#epoch = recording.epoch;
    const since = (number) => ((recording.times[number] - recording.from) / 1000).toFixed(3);
    const line = ({ id, event, data }, number) =>
      `${id} +${since(this.#raw + number)} ${event} ${JSON.stringify(data)}\n`;
    this.rawText.append(recording.events.slice(this.#raw).map(line).join(""));
    this.#raw = recording.length;
  }

  /** Plays or pauses: the Space key while no control has the focus. */
  toggle() {
    if (!this.fields.player.hidden) this.fields.play.click();
  }

  focus() {
    this.fields.id.focus();
    if (matchMedia("(max-width: 50rem)").matches) byId("main").scrollIntoView();
  }
}
