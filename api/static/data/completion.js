// Merges the chunks of one attempt into what the page shows of it. Does not touch the document.
//
// The rules are those of broker/completion/merging.py, reduced to what is shown: reasoning, answer, refusal and tool
// calls. Both are tested with tests/integration/broker/completion/cases.json.

/**
 * What a chunk adds to one section of the output. `place`: 0 reasoning, 1 answer, 2 refusal, from 3 on the tool calls
 * in the order in which they began. `name` and `text` continue those of the section; with `anew`, `text` replaces all
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
const INDEXES = 2 ** 31;
const indexOf = ({ index }) => {
  const number = typeof index === "string" && /^[0-9]{1,10}(\.0)?$/.test(index) ? Number(index) : index;
  return Number.isInteger(number) && number >= 0 && number < INDEXES ? number : null;
};
const idOf = ({ id }) => ((typeof id === "string" && id) || typeof id === "number" ? id : null);
const typeOf = ({ type }) => (typeof type === "string" && type ? type : null);
const isText = (value) => typeof value === "string" || typeof value === "number";
const isNothing = (text) => ["{}", "null"].includes(text.trim());
const opens = (text) => text.trimStart().startsWith("{");

const NO_REASON = new Set(
  ["", "null", "none", "nil", "undefined", "unfinished", "not_finished", "in_progress", "running", "continue"].concat(
    "finish_reason_unspecified",
  ),
);

/** Returns the finish reason of a choice; "" if there is none. Some upstreams send "", "null", … for null. */
export const finishReason = ({ finish_reason: reason }) =>
  typeof reason === "string" && !NO_REASON.has(reason.trim().toLowerCase()) ? reason : "";

/** The text of one attempt as it grows, choice by choice. */
export class Completion {
  #choices = new Map(); // index → Choice

  /** @param {any} chunk  any JSON @returns {Addition[]} */
  add(chunk) {
    return objectsOf(chunk?.choices).flatMap((choice, position) => {
      const index = indexOf(choice) ?? position;
      if (!this.#choices.has(index)) this.#choices.set(index, new Choice());
      const known = this.#choices.get(index);
      const added = [];
      if (isObject(choice.delta)) known.add(choice.delta, false, added);
      if (isObject(choice.message)) known.add(unsaid(choice.message, choice.delta), true, added);
      return added.map((addition) => ({ choice: index, name: "", anew: false, ...addition }));
    });
  }
}

/** Returns the part of a message that the delta of the same choice lacks: some upstreams send each piece as both. */
function unsaid(message, delta) {
  if (!isObject(delta)) return message;
  const isSaid = ([key, value]) => Object.hasOwn(delta, key) && JSON.stringify(delta[key]) === JSON.stringify(value);
  return Object.fromEntries(Object.entries(message).filter((entry) => !isSaid(entry)));
}

class Choice {
  #texts = ["", "", ""]; // by place
  #calls = new Calls();

  /** `whole`: a complete message, which may repeat pieces that came before. */
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

/** Returns what a piece adds to a text. A whole text that begins with the known one repeats it. */
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

/** Returns all text of a string, a part, or a list of either. */
function plain(value) {
  if (isText(value)) return String(value);
  if (Array.isArray(value)) return value.map(plain).join("");
  return isObject(value) ? plain(value.text ?? value.thinking ?? value.summary ?? value.reasoning ?? "") : "";
}

/** Returns the reasoning of upstreams that send it in no other field. */
const details = (message) => plain(message.reasoning_details ?? message.thinking_blocks ?? "");

/** The tool calls of one choice: assigns pieces to calls, by the rules of `Items` in broker/completion/merging.py. */
class Calls {
  #all = [];
  #places = new Map(); // index and type → the newest call there
  #ids = new Map(); // index and id, or id → the newest call with it

  add(given, whole, position) {
    const piece = asCall(given);
    let call = this.#known(piece, whole ? position : this.#all.length - 1);
    if (!call || call.isLeftBy(piece, whole)) {
      call = new Call(CALLS + this.#all.length);
      this.#all.push(call);
    }
    const addition = call.add(piece, whole);
    this.#register(call, call.id);
    if (idOf(piece) !== call.id) this.#register(call, idOf(piece));
    return addition;
  }

  #register(call, id) {
    const { index, type } = call;
    if (index !== null) for (const key of [type, null]) this.#places.set(JSON.stringify([index, key]), call);
    if (id !== null) for (const key of [index, null]) this.#ids.set(JSON.stringify([key, id]), call);
  }

  #known(piece, last) {
    const [index, id] = [indexOf(piece), idOf(piece)];
    if (id !== null) {
      const call = this.#ids.get(JSON.stringify([index, id])) ?? this.#ids.get(JSON.stringify([null, id]));
      if (call && (index === null || call.index === null || call.index === index)) return call;
    }
    if (index === null && id === null) return this.#all[last];
    const call = index === null ? this.#all[last] : this.#at(index, typeOf(piece));
    const isItsOwn = index !== null && (id === null || !call || call.id === null);
    return isItsOwn || call?.lacks(piece) ? call : undefined;
  }

  #at(index, type) {
    const call = this.#places.get(JSON.stringify([index, type]));
    if (call || type === null) return call;
    const untyped = this.#places.get(JSON.stringify([index, null]));
    return untyped?.type === null ? untyped : undefined;
  }
}

/** Returns a call with its name and arguments in an object of their own, as in OpenAI's format. */
function asCall(piece) {
  if (isObject(piece.function) || isObject(piece.custom)) return piece;
  const [kind, said] = piece.type === "custom" ? ["custom", "input"] : ["function", "arguments"];
  const body = Object.fromEntries(Object.entries(piece).filter(([key]) => key === "name" || key === said));
  return Object.keys(body).length ? { ...piece, [kind]: body } : piece;
}

class Call {
  index = null;
  type = null;
  id = null;
  #isFunction = false;
  #name = "";
  #input = ""; // of a custom tool
  #arguments = new Arguments();

  constructor(place) {
    this.place = place;
  }

  add(piece, whole) {
    this.index = indexOf(piece) ?? this.index;
    this.type = typeOf(piece) ?? this.type;
    this.id ??= idOf(piece);
    this.#isFunction ||= isObject(piece.function);
    const body = (this.#isFunction ? piece.function : piece.custom) ?? {};
    const name = isText(body.name) ? more(this.#name, String(body.name), true) : "";
    this.#name += name;
    return { place: this.place, name, ...this.#argue(body, whole) };
  }

  #argue(body, whole) {
    if (this.#isFunction) return this.#arguments.add(body.arguments, whole);
    const text = isText(body.input) ? more(this.#input, String(body.input), whole) : "";
    this.#input += text;
    return { text };
  }

  /** Returns whether the arguments are incomplete and the piece has nothing but arguments. */
  lacks(piece) {
    const { name, arguments: value } = isObject(piece.function) ? piece.function : {};
    const isBare = (name === undefined || name === null || name === "") && typeof value === "string" && value !== "";
    return this.#isFunction && isBare && !this.#arguments.areWhole;
  }

  /** Returns whether a piece that would continue this call starts another one, judged by its name or its arguments. */
  isLeftBy(piece, whole) {
    const { name, arguments: value } = isObject(piece.function) ? piece.function : {};
    if (!this.#isFunction || typeof name !== "string" || !name) return false;
    const isAnother = this.#name !== "" && !name.startsWith(this.#name);
    if (!this.#arguments.begun) {
      return isAnother && this.id === null && (Object.hasOwn(piece, "id") || indexOf(piece) === null);
    }
    if (isAnother || whole) return isAnother;
    return this.#arguments.areLeftBy(value) && !this.#isOf(piece, value);
  }

  /** Returns whether a piece with the name and another object still belongs to this call: see `_is_of` in merging.py. */
  #isOf(piece, value) {
    const isSame = idOf(piece) !== null && idOf(piece) === this.id;
    const isPlaced = indexOf(piece) !== null;
    const saysNothing = isObject(value) ? !Object.keys(value).length : isNothing(value);
    if (this.#arguments.sayNothing && !saysNothing) return isSame || isPlaced;
    const repeats = typeof value === "string" && this.#arguments.areRepeatedBy(value);
    return isSame && (repeats || this.#arguments.agreeWith(value, !isPlaced));
  }
}

/** The arguments of a call, by the rules of `Arguments` in broker/completion/text.py. */
class Arguments {
  #text = ""; // in pieces
  #fields = null; // an object, if one came decoded or after another one
  #isFilled = false; // whether that object has any key
  #last = ""; // last character of the text that is not white space
  #parses = 8; // failed attempts left: `}` and `{` can be part of a string, and each attempt reads the whole text
  #read = null; // the object that the text encodes
  #unread = false;

  /** Returns what is added to the displayed text, or, with `anew`, what replaces it. */
  add(value, whole) {
    if (value === null || value === undefined || value === "" || typeof value === "boolean") return { text: "" };
    const isEmptyList = Array.isArray(value) && !value.length; // PHP writes an empty object as []
    if (isObject(value) || isEmptyList) return this.#addObject(isEmptyList ? {} : value);
    const piece = typeof value === "string" ? value : JSON.stringify(value);
    if (!piece.trim()) return this.#fields ? { text: "" } : this.#append(piece);
    if (this.sayNothing) return piece.trim() === "null" ? { text: "" } : this.#replace(piece);
    if ((whole || opens(piece) || isNothing(piece)) && this.areWhole) return this.#addToWhole(piece, whole);
    return whole && this.areRepeatedBy(piece) ? this.#replace(piece) : this.#append(piece);
  }

  #addToWhole(piece, whole) {
    if (isNothing(piece)) return { text: "" };
    const repeats = this.areRepeatedBy(piece);
    const fields = repeats ? null : objectOf(piece);
    if (fields && !whole) return this.#addObject(fields);
    return fields || repeats ? this.#replace(piece) : this.#append(piece);
  }

  #replace(piece) {
    this.#text = "";
    this.#fields = null;
    this.#isFilled = false;
    return { ...this.#append(piece), anew: true };
  }

  #append(piece) {
    this.#text += piece;
    if (piece.trim()) {
      this.#last = piece.trimEnd().at(-1);
      this.#read = null;
      this.#unread = true;
    }
    return this.#isFilled ? { text: "" } : { text: piece };
  }

  #addObject(fields) {
    const isFilled = Object.keys(fields).length > 0;
    if (!this.#fields) {
      const known = this.#text && isFilled ? this.#object : null;
      this.#fields = Object.create(null);
      if (known) grow(this.#fields, known);
    }
    grow(this.#fields, fields);
    this.#isFilled ||= isFilled;
    return this.#isObject ? { text: JSON.stringify(this.#fields), anew: true } : { text: "" };
  }

  get begun() {
    return this.#text !== "" || this.#fields !== null;
  }

  get areWhole() {
    return this.#object !== null;
  }

  /** Whether they are `{}` or `null`: some upstreams start a call with these and send its arguments afterwards. */
  get sayNothing() {
    if (this.#isObject) return !this.#isFilled;
    return this.#text.length < 16 && isNothing(this.#text);
  }

  areRepeatedBy(piece) {
    return !this.#isFilled && piece.startsWith(this.#text);
  }

  /** Returns whether they are a whole object and `value` is the beginning of another one. */
  areLeftBy(value) {
    return (isObject(value) || (typeof value === "string" && opens(value))) && this.areWhole;
  }

  /** Returns whether both are whole objects without a contradiction. `wholly`: `value` must have all keys. */
  agreeWith(value, wholly) {
    const [known, fields] = [this.#object, objectOf(value)];
    if (!known || !fields) return false;
    return (!wholly || Object.keys(known).every((key) => Object.hasOwn(fields, key))) && agree(known, fields);
  }

  get #isObject() {
    return this.#isFilled || (this.#fields !== null && !this.#text);
  }

  /** The object that they form; null if there is none. */
  get #object() {
    if (this.#isObject) return this.#fields;
    if (this.#unread && this.#last === "}" && this.#parses) {
      this.#unread = false;
      this.#read = objectOf(this.#text);
      if (!this.#read) this.#parses--;
    }
    return this.#read;
  }
}

/** Returns an object, or the one whose JSON text is given; null for anything else. */
function objectOf(value) {
  if (isObject(value)) return value;
  if (typeof value !== "string" || !opens(value)) return null;
  try {
    return JSON.parse(value);
  } catch {
    return null;
  }
}

/** Merges by key, without changing `fields`. */
function grow(known, fields) {
  for (const [key, value] of Object.entries(fields)) {
    known[key] = isObject(value) ? grow(isObject(known[key]) ? known[key] : Object.create(null), value) : value;
  }
  return known;
}

function agree(known, fields) {
  return Object.keys(fields).every((key) => {
    if (!Object.hasOwn(known, key)) return true;
    const [old, value] = [known[key], fields[key]];
    return isObject(old) && isObject(value) ? agree(old, value) : JSON.stringify(old) === JSON.stringify(value);
  });
}
