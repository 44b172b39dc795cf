// The details of one generation: followed live, and replayed with its recorded timing.

import { oncePerFrame } from "../data/frames.js";
import { ENDINGS, UNAUTHORISED, ask, enqueue, insist, newKey, now, pathOf } from "../data/gateway.js";
import { Place } from "../data/place.js";
import { Recording } from "../data/recording.js";
import { GrowingText, Output } from "../ui/output.js";
import { announce, byId, clone, copy, duration, fieldsOf, make, moment } from "../ui/page.js";
import { rate, show, showStatus, tell, tokens } from "../ui/page.js";
import { again, follow } from "../ui/snippets.js";
import { mountSubscribers } from "../ui/subscribers.js";
import { Marks, Player, Timeline } from "../ui/timeline.js";
import { sentence } from "../ui/waiting.js";

const PAGE = 1000; // events

export class Detail {
  recording = new Recording();
  connection = "connecting";
  #trouble = ""; // the gateway's refusal, in addition to errors in the events
  #excuse = ""; // why there is no stream at the moment, if the gateway gave a reason
  #request = null;
  #model = "–"; // used if the event with the model was trimmed
  #announced = "";
  #raw = 0; // number of events in the list of raw events,
  #epoch = 0; // and the epoch of the recording they belong to
  #abort = new AbortController();
  #marks = new Marks();
  #newKey = newKey();

  constructor(id, { follower, chosen, overview }) {
    Object.assign(this, { id, follower, chosen, overview });
    this.root = clone("detail");
    this.fields = fieldsOf(this.root);
    this.player = new Player(this.recording, () => this.#onMove());
    this.paint = oncePerFrame(() => this.#paint());
    this.output = new Output(this.fields.output);
    this.rawText = new GrowingText(this.fields.raw);
    this.place = new Place(id, () => this.paint());
    this.timeline = new Timeline(this.fields.strip, this.fields.marks, (number) => this.player.seekTo(number));
    show(this.fields.id, id);
    mountSubscribers(this.root.querySelector("aside"), id);
    this.#listen();
    this.#load().catch((error) => this.#refused(error));
    this.paint();
  }

  close() {
    this.#abort.abort();
    this.follower.leave(this.id);
    if (this.player.playing) this.player.pause();
  }

  #listen() {
    const { fields, player } = this;
    const on = (name, act, event = "click") => fields[name].addEventListener(event, act);
    const cancel = () => ask(`${pathOf(this.id)}/cancel`, { method: "POST" });
    on("cancel", () => this.#act("cancel", "Cancelling failed", cancel));
    on("delete", () => this.#delete());
    on("retry", () => this.#act("retry", "Retrying failed", () => this.#retry()));
    on("choose", () => this.chosen.set(this.id, !this.chosen.has(this.id)));
    for (const language of Object.keys(follow)) {
      on(`copy-${language}`, () => this.#copy(`copy-${language}`, follow[language](this.id)));
      on(`again-${language}`, () => this.#copy(`again-${language}`, again[language](this.#request)));
    }
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

  async #load() {
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
    this.recording.push(event, now());
    this.place.take(event);
    this.paint();
  }

  /** Called every two seconds while the page is visible. */
  tick() {
    if (this.connection !== "ended") this.place.refresh(this.recording);
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
    this.#trouble = "";
    await act().catch((error) => (this.#trouble = `${otherwise}: ${error.message}`)); // the stream reports success
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

  async #retry() {
    location.hash = `#/${(await enqueue(this.#request, this.#newKey)).id}`;
    this.#newKey = newKey();
  }

  async #copy(name, text) {
    const button = this.fields[name];
    const { code } = this.fields;
    show(code, text);
    code.hidden = await copy(text);
    for (const other of this.root.querySelectorAll("[data-done]")) delete other.dataset.done;
    if (!code.hidden) return getSelection().selectAllChildren(code);
    button.dataset.done = "yes";
    announce("Copied");
  }

  /** Called by the player when its position changes: shows the output up to then, scrolled to its end. */
  #onMove() {
    if (this.player.position !== null) this.output.following = true;
    this.paint();
  }

  // --- rendering ---

  #showRequest({ request, metadata, model }) {
    const { fields } = this;
    this.#model = model;
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
    fields.request.hidden = fields.retry.hidden = false;
  }

  #paint() {
    const { fields, recording, player, connection } = this;
    const { count } = player;
    const facts = recording.facts(count);
    const { status, created, usage } = facts;
    showStatus(fields.status, status);
    const replayed = player.position !== null;
    show(fields.connection, replayed ? "replay" : connection);
    fields.connection.dataset.state = fields.connection.textContent;
    show(fields.model, facts.model ?? this.#model);
    for (const name of ["attempt", "finish"]) show(fields[name], String(facts[name] || "–"));
    show(fields.cursor, recording.events[count - 1]?.id ?? "–");
    for (const name of ["reset", "gap"]) tell(fields[name], facts[name] ?? "");
    const waits = replayed ? facts.waiting : this.place.queue;
    tell(fields.waiting, waits ? sentence(waits, this.place.upstreams) : "");
    tell(fields.excuse, this.#excuse);
    tell(fields.error, this.#trouble || (facts.error ?? ""));
    show(fields.created, created ? moment(created).toLocaleString() : "–");
    const soFar = recording.chunksIn(count) ? `≈ ${recording.chunksIn(count)} out` : "–";
    show(fields.usage, usage ? `${tokens(usage, "prompt")} in, ${tokens(usage, "completion")} out` : soFar);
    show(fields.subscribers, String(this.overview.subscribers[this.id] ?? "–"));
    fields.cancel.hidden = connection === "ended" || ENDINGS.has(recording.facts().status);
    fields.delete.hidden = !recording.length || recording.facts().status === "gone";
    fields.choose.ariaPressed = String(this.chosen.has(this.id));
    fields.output.ariaBusy = String(connection !== "ended");
    fields.output.toggleAttribute("data-writing", player.playing || (!replayed && status === "in_progress"));
    if (!replayed) this.#announce(connection === "reconnecting" ? "Connection lost" : status.replace("_", " "));
    document.title = `${status.replace("_", " ")} · ${this.id}`;
    this.#paintTimes(count);
    this.output.show(recording, count); // last, when the layout above it is settled
    this.#paintRaw();
  }

  #announce(text) {
    if (text !== this.#announced) announce(text);
    this.#announced = text;
  }

  #paintTimes(count) {
    const { fields, recording, player } = this;
    this.#marks.update(recording);
    const { from, until } = recording;
    const first = this.#marks.first("chunk");
    show(fields.first, first ? duration(first - from) : "–");
    show(fields.took, recording.length > 1 ? duration(until - from) : "–");
    const seconds = (until - first) / 1000;
    show(fields.rate, seconds > 0 ? rate(recording.chunks / seconds) : "–");
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
