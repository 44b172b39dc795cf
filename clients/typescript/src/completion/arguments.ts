/** The arguments of a tool call: pieces of JSON text, or objects that are merged key by key. */

import { isObject, type Fields } from "./values.js";

export const isNothing = (text: string): boolean => ["{}", "null"].includes(text.trim());
const opens = (text: string): boolean => text.trimStart().startsWith("{");

export class Arguments {
  #text = ""; // in pieces
  #fields: Record<string, unknown> | null = null; // an object, if one came decoded or after another one
  #isFilled = false; // whether that object has any key
  #last = ""; // last character of the text that is not white space
  #parses = 8; // failed attempts left: `}` and `{` can be part of a string, and each attempt reads the whole text
  #read: Fields | null = null; // the object that the text encodes
  #unread = false;

  /** The arguments as JSON text, as far as they are known. */
  get text(): string {
    return this.#isObject ? JSON.stringify(this.#fields) : this.#text;
  }

  add(value: unknown, whole: boolean): void {
    if (value === null || value === undefined || value === "" || typeof value === "boolean") return;
    const isEmptyList = Array.isArray(value) && !value.length; // PHP writes an empty object as []
    if (isEmptyList) return this.#addObject({});
    if (isObject(value)) return this.#addObject(value);
    const piece = typeof value === "string" ? value : JSON.stringify(value);
    if (!piece.trim()) return this.#fields ? undefined : this.#append(piece);
    if (this.sayNothing) return piece.trim() === "null" ? undefined : this.#replace(piece);
    if ((whole || opens(piece) || isNothing(piece)) && this.areWhole) return this.#addToWhole(piece, whole);
    return whole && this.areRepeatedBy(piece) ? this.#replace(piece) : this.#append(piece);
  }

  #addToWhole(piece: string, whole: boolean): void {
    if (isNothing(piece)) return;
    const repeats = this.areRepeatedBy(piece);
    const fields = repeats ? null : objectOf(piece);
    if (fields && !whole) this.#addObject(fields);
    else if (fields || repeats) this.#replace(piece);
    else this.#append(piece);
  }

  #replace(piece: string): void {
    this.#text = "";
    this.#fields = null;
    this.#isFilled = false;
    this.#append(piece);
  }

  #append(piece: string): void {
    this.#text += piece;
    if (!piece.trim()) return;
    this.#last = piece.trimEnd().at(-1) ?? "";
    this.#read = null;
    this.#unread = true;
  }

  #addObject(fields: Fields): void {
    const isFilled = Object.keys(fields).length > 0;
    if (!this.#fields) {
      const known = this.#text && isFilled ? this.#object : null;
      this.#fields = Object.create(null) as Record<string, unknown>;
      if (known) grow(this.#fields, known);
    }
    grow(this.#fields, fields);
    this.#isFilled ||= isFilled;
  }

  get begun(): boolean {
    return this.#text !== "" || this.#fields !== null;
  }

  get areWhole(): boolean {
    return this.#object !== null;
  }

  /** Whether they are `{}` or `null`: some upstreams start a call with these and send its arguments afterwards. */
  get sayNothing(): boolean {
    if (this.#isObject) return !this.#isFilled;
    return this.#text.length < 16 && isNothing(this.#text);
  }

  areRepeatedBy(piece: string): boolean {
    return !this.#isFilled && piece.startsWith(this.#text);
  }

  /** Whether they are a whole object and `value` is the beginning of another one. */
  areLeftBy(value: unknown): boolean {
    return (isObject(value) || (typeof value === "string" && opens(value))) && this.areWhole;
  }

  /** Whether both are whole objects without a contradiction. `wholly`: `value` must have all keys. */
  agreeWith(value: unknown, wholly: boolean): boolean {
    const [known, fields] = [this.#object, objectOf(value)];
    if (!known || !fields) return false;
    return (!wholly || Object.keys(known).every((key) => Object.hasOwn(fields, key))) && agree(known, fields);
  }

  get #isObject(): boolean {
    return this.#isFilled || (this.#fields !== null && !this.#text);
  }

  /** The object that they form; null if there is none. */
  get #object(): Fields | null {
    if (this.#isObject) return this.#fields;
    if (this.#unread && this.#last === "}" && this.#parses) {
      this.#unread = false;
      this.#read = objectOf(this.#text);
      if (!this.#read) this.#parses--;
    }
    return this.#read;
  }
}

/** An object, or the one whose JSON text is given; null for anything else. */
function objectOf(value: unknown): Fields | null {
  if (isObject(value)) return value;
  if (typeof value !== "string" || !opens(value)) return null;
  try {
    return JSON.parse(value) as Fields;
  } catch {
    return null;
  }
}

/** Merge by key, without changing `fields`. */
function grow(known: Record<string, unknown>, fields: Fields): Record<string, unknown> {
  for (const [key, value] of Object.entries(fields)) {
    const old = known[key];
    const base = isObject(old) ? (old as Record<string, unknown>) : (Object.create(null) as Record<string, unknown>);
    known[key] = isObject(value) ? grow(base, value) : value;
  }
  return known;
}

function agree(known: Fields, fields: Fields): boolean {
  return Object.keys(fields).every((key) => {
    if (!Object.hasOwn(known, key)) return true;
    const [old, value] = [known[key], fields[key]];
    return isObject(old) && isObject(value) ? agree(old, value) : JSON.stringify(old) === JSON.stringify(value);
  });
}
