// Helpers for all parts of the page. Text of a model or a caller enters the page as text (textContent, Text nodes),
// never as markup.

export const byId = (id) => document.getElementById(id);
export const clone = (template) => byId(template).content.firstElementChild.cloneNode(true);

/** Returns the elements of a cloned template by their data-field. */
export function fieldsOf(root) {
  return Object.fromEntries(Array.from(root.querySelectorAll("[data-field]"), (node) => [node.dataset.field, node]));
}

/** Sets a text, unless it is the same. */
export function show(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Sets a message, which is hidden while it is empty. */
export function tell(node, text) {
  show(node, text);
  node.hidden = !text;
}

export function showStatus(node, status) {
  show(node, status.replace("_", " "));
  node.dataset.status = status;
}

export function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** Announces a text to screen readers. */
export const announce = (text) => show(byId("announcement"), text);

/** Copies to the clipboard. False if there is none, as for a page from another machine over plain HTTP. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

// --- numbers ---

export const moment = (seconds) => new Date(seconds * 1000);

export function age(seconds) {
  const [unit, size] = [["d", 86400], ["h", 3600], ["min", 60]].find(([, size]) => seconds >= size) ?? ["s", 1];
  return `${Math.max(0, Math.floor(seconds / size))} ${unit}`;
}

/** Formats a duration. */
export function duration(ms) {
  if (ms < 1000) return `${Math.max(0, Math.round(ms))} ms`;
  const seconds = ms / 1000;
  if (seconds < 100) return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes} min ${Math.floor(seconds % 60)} s` : age(seconds);
}

export const tokens = (usage, kind) => `${usage.estimated ? "≈ " : ""}${usage[`${kind}_tokens`] ?? 0}`;
export const rate = (perSecond) => (Number.isFinite(perSecond) ? `${perSecond.toFixed(perSecond < 10 ? 1 : 0)}/s` : "");
