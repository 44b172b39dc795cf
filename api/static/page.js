// Small things that every part of the page needs. What a model or a caller wrote gets into the page as text
// (textContent, Text nodes), never as markup.

export const byId = (id) => document.getElementById(id);
export const clone = (template) => byId(template).content.firstElementChild.cloneNode(true);

/** The elements of a cloned template, by their data-field. */
export function fieldsOf(root) {
  return Object.fromEntries(Array.from(root.querySelectorAll("[data-field]"), (node) => [node.dataset.field, node]));
}

/** Sets a text; touches nothing that stays as it is. */
export function show(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** The same for a message that is hidden while it is empty. */
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

/** Calls `paint` once in the next frame, however often it is asked to. */
export function painter(paint) {
  let frame = 0;
  return () => {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      paint();
    });
  };
}

/** Read aloud, when the voice comes to it. */
export const announce = (text) => show(byId("announcement"), text);

/** To the clipboard; a page that came over plain HTTP from another machine has none, then false. */
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

/** How long something took, or goes on. */
export function duration(ms) {
  if (ms < 1000) return `${Math.max(0, Math.round(ms))} ms`;
  const seconds = ms / 1000;
  if (seconds < 100) return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes} min ${Math.floor(seconds % 60)} s` : age(seconds);
}

export const tokens = (usage, kind) => `${usage.estimated ? "≈ " : ""}${usage[`${kind}_tokens`] ?? 0}`;
export const rate = (perSecond) => (Number.isFinite(perSecond) ? `${perSecond.toFixed(perSecond < 10 ? 1 : 0)}/s` : "");

/** `<attempt>-<seq>` as numbers: an attempt has 51 bits. */
export const parts = (cursor) => cursor.split("-").map(Number);

/** Whether cursor `a` is behind `b` or the same. */
export function notAfter(a, b) {
  const [[attempt, seq], [other, last]] = [parts(a), parts(b)];
  return attempt < other || (attempt === other && seq <= last);
}
