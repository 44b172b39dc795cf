// The wall: several generations side by side, live, over one connection.

import { oncePerFrame } from "../data/frames.js";
import { ENDINGS, ask, now, pathOf } from "../data/gateway.js";
import { Recording } from "../data/recording.js";
import { Output } from "../ui/output.js";
import { byId, clone, fieldsOf, rate, show, showStatus, tell } from "../ui/page.js";
import { sentence } from "../ui/waiting.js";

const MOST = 100; // maximum number of generations on one connection
const BY_ITSELF = 6; // tiles if no generations were selected
const PERIOD = 1000; // ms between two polls of the running generations
const LATELY = 3000; // ms over which a rate is measured
const KEY = "tokencast-wall";

/** The generations selected for the wall; stored until the tab is closed. */
export class Chosen extends EventTarget {
  #ids = new Set(JSON.parse(sessionStorage.getItem(KEY) ?? "[]"));

  has(id) {
    return this.#ids.has(id);
  }

  set(id, chosen) {
    this.setAll([id], chosen);
  }

  setAll(ids, chosen) {
    for (const id of ids) {
      if (chosen) this.#ids.add(id);
      else this.#ids.delete(id);
    }
    sessionStorage.setItem(KEY, JSON.stringify([...this.#ids]));
    this.dispatchEvent(new Event("change"));
  }

  get size() {
    return this.#ids.size;
  }

  get ids() {
    return [...this.#ids];
  }

  /** The address of the wall with these generations; without any, with the newest running ones. */
  get hash() {
    return `#/wall${this.size ? `/${[...this.#ids].slice(0, MOST).join(",")}` : ""}`;
  }
}

class Tile {
  recording = new Recording();
  connection = "connecting";
  #live = Infinity; // time of the connection, ms
  over = 0; // time of its end, ms

  /** @param {?() => void} drop  removes it from the wall, if it was selected */
  constructor(id, drop) {
    this.id = id;
    this.root = clone("tile");
    this.fields = fieldsOf(this.root);
    this.fields.link.href = `#/${id}`;
    show(this.fields.link, `…${id.slice(-6)}`);
    this.fields.link.title = id;
    this.fields.output.ariaLabel = `Output of ${id}`;
    this.fields.drop.hidden = !drop;
    this.fields.drop.ariaLabel = `Remove ${id} from the wall`;
    this.fields.drop.addEventListener("click", drop);
    this.output = new Output(this.fields.output);
    this.paint = oncePerFrame(() => this.#paint());
  }

  take(event) {
    this.recording.push(event, now());
    if (ENDINGS.has(event.event)) this.over = Date.now();
    this.paint();
  }

  /** Shows the first line of the prompt. */
  name(prompt) {
    show(this.fields.prompt, prompt ?? "");
    this.fields.prompt.title = prompt ?? "";
  }

  state(state, message) {
    this.connection = state;
    this.#live = state === "live" ? Date.now() : Infinity;
    this.trouble = message;
    if (state === "refused") this.over ||= Date.now();
    this.paint();
  }

  #paint() {
    const { fields, recording } = this;
    const { status, model, error, reset, waiting, gap } = recording.facts();
    showStatus(fields.status, status);
    show(fields.model, model ?? "");
    const running = status === "in_progress" && Date.now() - this.#live > 2 * LATELY; // stored events come all at once
    const lately = running ? recording.length - recording.countAt(now() - LATELY) : NaN;
    const told = [recording.chunks && `≈ ${recording.chunks} tokens`, rate(lately / (LATELY / 1000))];
    show(fields.length, told.filter(Boolean).join(" · "));
    fields.output.toggleAttribute("data-writing", status === "in_progress");
    tell(fields.note, [error || this.trouble, waiting && sentence(waiting), gap, reset].filter(Boolean).join(" "));
    this.root.dataset.connection = this.connection;
    this.output.show(recording);
  }
}

export class Wall {
  #tiles = new Map();
  #wanted = new Set();
  #timer = 0;

  /** @param {Map<string, object>} known  the generations that the list knows */
  constructor(follower, chosen, known) {
    Object.assign(this, { follower, chosen, known });
    this.root = byId("wall");
  }

  /** @param {string[]} ids  none: the newest running ones */
  open(ids) {
    this.#stop();
    const wanted = new Set(ids.slice(0, MOST));
    this.#wanted = wanted;
    for (const { fields } of this.#tiles.values()) fields.drop.hidden = !wanted.size;
    if (wanted.size) for (const id of this.#tiles.keys()) if (!wanted.has(id)) this.#drop(id);
    for (const id of wanted) this.#put(id, () => this.#takeOff(id));
    this.#timer = setInterval(() => this.#tick(!wanted.size), PERIOD);
    if (!wanted.size) this.#look();
  }

  close() {
    this.#stop();
    for (const id of this.#tiles.keys()) this.#drop(id);
  }

  #takeOff(id) {
    const left = [...this.#wanted].filter((other) => other !== id);
    this.chosen.set(id, false);
    location.hash = `#/wall${left.length ? `/${left.join(",")}` : ""}`;
  }

  #tick(byItself) {
    for (const tile of this.#tiles.values()) tile.paint(); // its rate decreases while no events come
    if (byItself) this.#look();
  }

  #stop() {
    clearInterval(this.#timer);
    this.#timer = 0;
    tell(byId("wall-state"), "");
  }

  /** Without a selection, new generations take free tiles, then those of the generations that ended first. */
  async #look() {
    if (document.hidden) return;
    const timer = this.#timer;
    const told = await ask(`/v1/generations?status=in_progress&limit=${BY_ITSELF}`).catch(() => null);
    if (!told || timer !== this.#timer) return;
    for (const one of told.data) if (!this.#tiles.has(one.id) && this.#makeRoom()) this.#put(one.id, null, one);
    const none = "No generation is running. New ones appear here; select others in the list.";
    tell(byId("wall-state"), this.#tiles.size ? "" : none);
  }

  #makeRoom() {
    if (this.#tiles.size < BY_ITSELF) return true;
    const over = [...this.#tiles.values()].filter((tile) => tile.over).sort((a, b) => a.over - b.over);
    if (over.length) this.#drop(over[0].id);
    return over.length > 0;
  }

  #put(id, drop, known = this.known.get(id)) {
    if (this.#tiles.has(id)) return;
    const tile = new Tile(id, drop);
    this.#tiles.set(id, tile);
    this.root.append(tile.root);
    this.#arrange();
    if (known) tile.name(known.prompt);
    else ask(pathOf(id)).then(({ prompt }) => tile.name(prompt), () => {}); // the stream reports what is wrong
    this.follower.follow(id, tile);
  }

  #drop(id) {
    this.follower.leave(id);
    this.#tiles.get(id).root.remove();
    this.#tiles.delete(id);
    this.#arrange();
  }

  /** Arranges the tiles in a square, at most four per row. */
  #arrange() {
    this.root.style.setProperty("--columns", Math.min(4, Math.ceil(Math.sqrt(this.#tiles.size))));
  }
}
