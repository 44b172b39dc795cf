// A question in the page, before an action that affects others.

import { byId, show } from "./page.js";

/**
 * Asks, and returns whether the action was confirmed. Esc and Cancel mean no.
 * @param {string} text  @param {string} action  label of the button
 * @returns {Promise<boolean>}
 */
export function confirmed(text, action) {
  const dialog = byId("confirm");
  show(byId("confirm-text"), text);
  show(byId("confirm-yes"), action);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

byId("confirm-yes").addEventListener("click", () => byId("confirm").close("yes"));
byId("confirm-no").addEventListener("click", () => byId("confirm").close(""));
