// Markdown as elements. The parser only finds the structure: each element is made here, from a list of those that are
// allowed, and every text enters the page as text. HTML in the source is shown, not interpreted; images are not loaded.

import { make } from "../ui/page.js";
import { Lexer } from "../vendor/marked-18.2.1/marked.esm.js";
import { highlighted } from "./highlight.js";

const INLINE = 10_000; // characters of a paragraph up to which it is parsed for emphasis and links
const LONGEST = 1_000_000; // characters that are parsed at once
const BLOCK = 65_536; // characters of a block that is still growing: it is parsed again with each addition
const SLOW = 30; // ms; after a parse that took longer, the next one waits three times as long as it took
const SCHEMES = new Set(["http:", "https:", "mailto:"]);
const CLOSED = /^ {0,3}(`{3,}|~{3,})[^]*\n {0,3}\1\s*$/;
const ENTITY = /&(?:#\d{1,7}|#x[\da-f]{1,6}|[a-z][a-z\d]{1,31});/gi;

/** Returns the top-level tokens of a text. Deep nesting exhausts the stack: RangeError. */
function tokensOf(source) {
  const lexer = new Lexer({ gfm: true });
  lexer.blockTokens(source, lexer.tokens);
  for (const { src, tokens } of lexer.inlineQueue) {
    if (src.length > INLINE) tokens.push({ type: "text", raw: src, text: src });
    else lexer.inlineTokens(src, tokens);
  }
  return lexer.tokens;
}

const all = (tokens) => (tokens ?? []).map(element);
const inlineOf = (token) => (token.tokens?.length ? all(token.tokens) : [decoded(token.text ?? "")]);
const holding = (tag) => (token) => make(tag, {}, ...inlineOf(token));

/** What is made of each kind of token; of others their source. */
const ELEMENTS = {
  space: () => "",
  def: () => "",
  text: (token) => (token.tokens ? fragment(all(token.tokens)) : decoded(token.text)),
  escape: ({ text }) => text,
  html: ({ raw, block }) => (block ? make("p", {}, raw) : raw),
  paragraph: holding("p"),
  strong: holding("strong"),
  em: holding("em"),
  del: holding("del"),
  codespan: ({ text }) => make("code", {}, text),
  br: () => make("br"),
  hr: () => make("hr"),
  blockquote: ({ tokens }) => make("blockquote", {}, ...all(tokens)),
  // The page has headings above: h1 to h3.
  heading: (token) => {
    const level = { role: "heading", ariaLevel: String(token.depth + 3), className: `h${token.depth}` };
    return make("p", level, ...inlineOf(token));
  },
  code: ({ lang, text }) => code(lang, text),
  list: ({ ordered, start, items }) => {
    const list = make(ordered ? "ol" : "ul", {}, ...items.map(({ tokens }) => make("li", {}, ...all(tokens))));
    if (ordered && Number.isSafeInteger(start)) list.start = start;
    return list;
  },
  checkbox: ({ checked }) => make("span", {}, checked ? "☑ " : "☐ "),
  table: ({ header, rows }) => {
    const cell = (tag) => ({ align, tokens }) => make(tag, { align: align ?? "" }, ...all(tokens));
    const head = make("thead", {}, make("tr", {}, ...header.map(cell("th"))));
    const body = make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map(cell("td")))));
    const scrolling = { className: "wide", tabIndex: 0, role: "region", ariaLabel: "Table" };
    return make("div", scrolling, make("table", {}, head, body));
  },
  link: (token) => link(token.href, inlineOf(token), token.raw),
  image: ({ href, text }) => link(href, [text ? `[image: ${text}]` : "[image]"], ""),
};

function element(token) {
  return Object.hasOwn(ELEMENTS, token.type) ? ELEMENTS[token.type](token) : token.raw;
}

function fragment(nodes) {
  const made = document.createDocumentFragment();
  made.append(...nodes);
  return made;
}

/** Returns a link that is safe to follow; otherwise what it would have contained, and its address as text. */
function link(href, content, raw) {
  const url = URL.canParse(href) ? new URL(href) : null;
  if (url && SCHEMES.has(url.protocol)) {
    const safe = { rel: "noopener noreferrer nofollow", target: "_blank", title: url.href };
    return make("a", { href: url.href, ...safe }, ...content);
  }
  return raw || fragment([...content, ` (${href})`]);
}

function code(lang, text) {
  const block = make("code", {}, text);
  if (lang) block.dataset.language = lang.match(/^\S*/)[0].toLowerCase();
  return make("pre", { tabIndex: 0, role: "region", ariaLabel: lang ? `Code: ${lang}` : "Code" }, block);
}

/** Replaces character references, such as `&lt;` and `&#8211;`. The text around them is not parsed. */
function decoded(text) {
  if (!text.includes("&")) return text;
  const parser = new DOMParser();
  return text.replace(ENTITY, (reference) => parser.parseFromString(reference, "text/html").body.textContent);
}

/**
 * A text that grows, rendered block by block: a block that is followed by another one is not touched again. What is too
 * deep or too long to be parsed is shown as it is.
 */
export class RenderedText {
  #source = "";
  #return = ""; // a carriage return at its end: of a line end, or the first half of one
  #start = 0; // of the block that still grows, in the source
  #growing = []; // its nodes
  #plain = null;
  #rest = 0; // time until which it does not parse again, ms
  #timer = 0;

  constructor(parent) {
    this.parent = parent;
    parent.classList.add("rendered");
  }

  clear() {
    this.parent.replaceChildren();
    this.#source = this.#return = "";
    this.#start = 0;
    this.#growing = [];
    this.#plain = null;
    this.#rest = 0;
    this.#stop();
  }

  append(text) {
    if (!text) return;
    const all = this.#return + text;
    this.#return = all.endsWith("\r") ? "\r" : "";
    const lines = all.slice(0, all.length - this.#return.length).replace(/\r\n?/g, "\n");
    this.#source += lines;
    if (this.#plain) this.#plain.append(lines);
    else if (performance.now() > this.#rest) this.#parse();
    else this.#timer ||= setTimeout(() => this.#parse(), this.#rest - performance.now());
  }

  #stop() {
    clearTimeout(this.#timer);
    this.#timer = 0;
  }

  #parse() {
    this.#stop();
    const tail = this.#source.slice(this.#start);
    if (tail.length > LONGEST) return this.#giveUp();
    const began = performance.now();
    try {
      const tokens = tokensOf(tail);
      if (tail.length > BLOCK && tokens.length < 3) return this.#giveUp();
      this.#show(tokens, tail);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      return this.#giveUp();
    }
    const took = performance.now() - began;
    if (took > SLOW) this.#rest = performance.now() + 3 * took;
  }

  /** Colours the code of the last block, which no text is added to for the moment. */
  settle() {
    if (this.#timer) this.#parse();
    for (const node of this.#growing) highlight(node);
  }

  #show(tokens, tail) {
    let last = tokens.length - 1;
    while (last > 0 && tokens[last].type === "space") last--;
    const done = tokens.slice(0, last);
    const length = done.reduce((sum, { raw }) => sum + raw.length, 0);
    for (const node of this.#growing) node.remove();
    const exact = tail.startsWith(done.map(({ raw }) => raw).join(""));
    if (exact && length) {
      for (const node of this.#put(done)) highlight(node);
      this.#start += length;
    }
    const growing = exact ? tokens.slice(last) : tokens;
    this.#growing = this.#put(growing);
    if (growing[0]?.type === "code" && CLOSED.test(growing[0].raw)) this.settle();
  }

  #put(tokens) {
    const nodes = tokens.flatMap((token) => {
      const made = element(token);
      if (typeof made === "string") return made.trim() ? [make("p", {}, made)] : [];
      return made instanceof DocumentFragment ? [make("p", {}, made)] : [made];
    });
    this.parent.append(...nodes);
    return nodes;
  }

  #giveUp() {
    for (const node of this.#growing) node.remove();
    this.#growing = [];
    this.#plain = this.parent.appendChild(make("div", { className: "plain" }, this.#source.slice(this.#start)));
  }
}

async function highlight(node) {
  const blocks = node.matches("pre") ? [node] : node.querySelectorAll("pre");
  for (const block of blocks) {
    const content = block.firstElementChild;
    const { language } = content.dataset;
    if (!language || content.childElementCount) continue;
    const coloured = await highlighted(content.textContent, language);
    if (coloured) content.replaceChildren(...coloured);
  }
}

/** Arguments of a tool call: laid out, if they are complete. */
export class RenderedCall {
  #source = "";
  #settled = "";

  constructor(parent) {
    this.parent = parent;
    this.text = parent.appendChild(make("div"));
  }

  clear() {
    this.#source = this.#settled = "";
    this.text.textContent = "";
  }

  append(text) {
    if (!text) return;
    this.#source += text;
    this.text.textContent = this.#source;
  }

  async settle() {
    const source = this.#source;
    if (source === this.#settled) return;
    this.#settled = source;
    const laidOut = reformatted(source);
    if (!laidOut) return;
    const coloured = await highlighted(laidOut, "json");
    if (source === this.#source) this.text.replaceChildren(...(coloured ?? [laidOut]));
  }
}

function reformatted(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return "";
  }
}
