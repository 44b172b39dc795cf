// Merges the chunks of one attempt into what the page shows of it. Pure: touches no document.
//
// The rules are those of broker/merging.py, of which this needs the part that is shown: reasoning, answer, refusal and
// tool calls. Both are held to tests/merging/cases.json.

/**
 * What a chunk adds to one section of the output. `place`: 0 reasoning, 1 answer, 2 refusal, from 3 on the tool calls in
 * the order in which they began. `name` and `text` continue the section's; with `anew`, `text` takes the place of all
 * text before it.
 * @typedef {{choice: number, place: number, name: string, text: string, anew: boolean}} Addition
 */

export const REASONING = 0;
export const ANSWER = 1;
export const REFUSAL = 2;
export const CALLS = 3;

const TEXT_PARTS = new Set([null, "text", "output_text"]);
const THOUGHT_PARTS = new Set(["thinking", "reasoning", "reasoning_text", "reasoning.text", "reasoning.summary"]);

export const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
export const objectsOf = (value) => (Array.isArray(value) ? value.filter(isObject) : []);
const indexOf = ({ index }) => (Number.isInteger(index) ? index : null);
const idOf = ({ id }) => ((typeof id === "string" && id) || typeof id === "number" ? id : null);
const typeOf = ({ type }) => (typeof type === "string" && type ? type : null);
const isText = (value) => typeof value === "string" || typeof value === "number";

const NO_REASON = new Set(
  ["", "null", "none", "nil", "undefined", "unfinished", "not_finished", "in_progress", "running", "continue"].concat(
    "finish_reason_unspecified",
  ),
);

/** Why a choice is finished; "" if it is not. Some upstreams say "", "null", "unfinished" or the like for null. */
export const finishReason = ({ finish_reason: reason }) =>
  typeof reason === "string" && !NO_REASON.has(reason.trim().toLowerCase()) ? reason : "";

/** The text of one attempt as it grows, choice by choice. */
export class Completion {
  #choices = new Map(); // index → Choice

  /** @param {any} chunk  any JSON @returns {Addition[]} */
  add(chunk) {
    return objectsOf(chunk?.choices).flatMap((choice) => {
      const index = indexOf(choice) ?? 0;
      if (!this.#choices.has(index)) this.#choices.set(index, new Choice());
      const known = this.#choices.get(index);
      const added = [];
      if (isObject(choice.delta)) known.add(choice.delta, false, added);
      if (isObject(choice.message)) known.add(choice.message, true, added);
      return added.map((addition) => ({ choice: index, name: "", anew: false, ...addition }));
    });
  }
}

class Choice {
  #texts = ["", "", ""]; // by place
  #calls = new Calls();

  /** `whole`: a message as a whole, which may repeat what came in pieces before. */
  add(message, whole, added) {
    const content = { thoughts: "", text: "", refusal: "" };
    read(message.content, content);
    const reasoning = plain(message.reasoning_content) || plain(message.reasoning) || details(message);
    this.#grow(REASONING, reasoning + content.thoughts, whole, added);
    this.#grow(ANSWER, content.text, whole, added);
    this.#grow(REFUSAL, plain(message.refusal) + content.refusal, whole, added);
    const { tool_calls: calls } = message;
    const listed = isObject(calls) ? [calls] : objectsOf(calls);
    for (const [position, call] of listed.filter((one) => Object.keys(one).length).entries()) {
      added.push(this.#calls.add(call, whole, position));
    }
  }

  #grow(place, piece, whole, added) {
    const text = more(this.#texts[place], piece, whole);
    this.#texts[place] += text;
    if (text) added.push({ place, text });
  }
}

/** What a piece adds to a text. A whole text that begins with the known one repeats it. */
function more(known, piece, whole) {
  return whole && piece.startsWith(known) ? piece.slice(known.length) : piece;
}

/** Sorts a content into `into`: a string, a list of typed parts, or one such part. */
function read(content, into) {
  if (isText(content)) into.text += content;
  for (const part of Array.isArray(content) ? content : [content]) {
    if (Array.isArray(content) && typeof part === "string") into.text += part;
    if (!isObject(part)) continue;
    if (TEXT_PARTS.has(part.type ?? null)) into.text += plain(part.text);
    else if (THOUGHT_PARTS.has(part.type)) into.thoughts += plain(part);
    else if (part.type === "refusal") into.refusal += plain(part.refusal);
  }
}

/** All text in a string, in a part, or in a list of either. */
function plain(value) {
  if (isText(value)) return String(value);
  if (Array.isArray(value)) return value.map(plain).join("");
  return isObject(value) ? plain(value.text ?? value.thinking ?? value.summary ?? value.reasoning ?? "") : "";
}

/** The reasoning of upstreams that tell it in no other field. */
const details = (message) => plain(message.reasoning_details ?? message.thinking_blocks ?? "");

/** The tool calls of one choice: which piece continues which. The rules of `Items` in broker/merging.py. */
class Calls {
  #all = [];
  #places = new Map(); // index and type → the newest call there
  #ids = new Map(); // index and id, or id → the newest call with it

  add(piece, whole, position) {
    let call = this.#known(piece, whole ? position : this.#all.length - 1);
    if (!call || call.isLeftBy(piece, whole)) {
      call = new Call(CALLS + this.#all.length);
      this.#all.push(call);
    }
    const addition = call.add(piece, whole);
    this.#register(call);
    return addition;
  }

  #register(call) {
    const { index, type, id } = call;
    if (index !== null) for (const key of [type, null]) this.#places.set(JSON.stringify([index, key]), call);
    if (id !== null) for (const key of [index, null]) this.#ids.set(JSON.stringify([key, id]), call);
  }

  #known(piece, last) {
    const [index, id] = [indexOf(piece), idOf(piece)];
    if (id !== null) {
      const call = this.#ids.get(JSON.stringify([index, id])) ?? this.#ids.get(JSON.stringify([null, id]));
      if (call && (index === null || call.index === null || call.index === index)) return call;
    }
    if (index !== null) {
      const call = this.#at(index, typeOf(piece));
      return call && id !== null && call.id !== null ? undefined : call;
    }
    return id === null ? this.#all[last] : undefined;
  }

  #at(index, type) {
    const call = this.#places.get(JSON.stringify([index, type]));
    if (call || type === null) return call;
    const untyped = this.#places.get(JSON.stringify([index, null]));
    return untyped?.type === null ? untyped : undefined;
  }
}

class Call {
  index = null;
  type = null;
  id = null;
  #isFunction = false;
  #name = "";
  #text = ""; // arguments in pieces
  #fields = null; // arguments that came as an object
  #last = ""; // character of them that is no white space
  #parses = 8; // in vain: `}` and `{` may stand in a string, and each reads all of the arguments

  constructor(place) {
    this.place = place;
  }

  add(piece, whole) {
    this.index = indexOf(piece) ?? this.index;
    this.type = typeOf(piece) ?? this.type;
    this.id = idOf(piece) ?? this.id;
    this.#isFunction ||= isObject(piece.function);
    const body = (this.#isFunction ? piece.function : piece.custom) ?? {};
    const name = isText(body.name) ? more(this.#name, String(body.name), true) : "";
    this.#name += name;
    return { place: this.place, name, ...this.#argue(body.arguments ?? body.input, whole) };
  }

  #argue(value, whole) {
    if (value === null || value === undefined || value === "" || typeof value === "boolean") return { text: "" };
    if (isObject(value) || (Array.isArray(value) && !value.length)) { // PHP writes an empty object as []
      this.#fields = Object.assign(this.#fields ?? Object.create(null), value);
      return { text: this.#shown, anew: true };
    }
    const piece = typeof value === "string" ? value : JSON.stringify(value);
    const text = more(this.#text, piece, whole || this.#isWholeBefore(piece));
    this.#text += text;
    this.#last = piece.trimEnd().at(-1) ?? this.#last;
    return this.#fields ? { text: this.#shown, anew: true } : { text };
  }

  /** An object counts, unless it is empty and there is text. */
  get #shown() {
    return Object.keys(this.#fields).length || !this.#text ? JSON.stringify(this.#fields) : this.#text;
  }

  /** Whether a piece that would continue this call begins another: by its name, or by its arguments. */
  isLeftBy(piece, whole) {
    const { name, arguments: value } = isObject(piece.function) ? piece.function : {};
    if (!this.#isFunction || typeof name !== "string" || !name) return false;
    const isAnother = this.#name !== "" && !name.startsWith(this.#name);
    const object = this.#fields !== null && Object.keys(this.#fields).length > 0;
    if (!this.#text && !object) return isAnother && indexOf(piece) === null && this.id === null;
    const isSame = idOf(piece) !== null && idOf(piece) === this.id;
    const repeats = isObject(value) || (typeof value === "string" && value.startsWith(this.#text));
    return isAnother || (!whole && !(isSame && repeats) && this.#isWholeBefore(value));
  }

  /** Whether the arguments are a whole object, and `value` is the beginning of another. */
  #isWholeBefore(value) {
    const hasFields = this.#fields !== null && Object.keys(this.#fields).length > 0;
    if (!hasFields && this.#last !== "}") return false;
    const opens = isObject(value) || (typeof value === "string" && value.trimStart().startsWith("{"));
    return opens && (hasFields || this.#isWhole());
  }

  #isWhole() {
    if (!this.#parses) return false;
    try {
      return isObject(JSON.parse(this.#text));
    } catch {
      this.#parses--;
      return false;
    }
  }
}
