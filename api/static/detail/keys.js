// The keys of a generation's page, and the dialog that lists the keys of all pages.

import { byId } from "../ui/page.js";

const SECOND = 1000; // ms

/** Key → what it does with the page of a generation. @type {Record<string, (page: any) => void>} */
const SEEK = {
  ArrowLeft: ({ player }) => player.seek(player.time - SECOND),
  ArrowRight: ({ player }) => player.seek(player.time + SECOND),
  "Shift+ArrowLeft": ({ player }) => player.seek(player.time - 10 * SECOND),
  "Shift+ArrowRight": ({ player }) => player.seek(player.time + 10 * SECOND),
  ",": ({ player }) => player.step(-1),
  ".": ({ player }) => player.step(1),
  "[": (page) => page.toMark(-1),
  "]": (page) => page.toMark(1),
  Home: ({ player, recording }) => player.seek(recording.from),
  End: ({ player }) => player.end(),
};
const SWITCHES = {
  m: ({ fields }) => fields.rendered.click(),
  d: ({ fields }) => fields.attempts.hidden || fields.compare.click(),
};

/**
 * Handles a key of the page; returns whether it has a meaning. Regions that scroll keep Home and End.
 * @param {KeyboardEvent} event  @param {object} page
 */
export function press({ key, shiftKey, target }, page) {
  if (target.closest("dialog")) return false;
  if (key === "Escape" && !page.fields.comparison.hidden) {
    page.attempts.open(false);
    return true;
  }
  const scrolls = target.matches('[tabindex="0"]') && (key === "Home" || key === "End");
  const name = key.startsWith("Arrow") && shiftKey ? `Shift+${key}` : key;
  const replays = !page.fields.player.hidden && !scrolls;
  const act = (replays && Object.hasOwn(SEEK, name) && SEEK[name]) || (Object.hasOwn(SWITCHES, name) && SWITCHES[name]);
  if (act) act(page);
  return Boolean(act);
}

export function showKeys() {
  if (!document.querySelector("dialog[open]")) byId("keys").showModal();
}

byId("keys-close").addEventListener("click", () => byId("keys").close());
byId("show-keys").addEventListener("click", showKeys);
