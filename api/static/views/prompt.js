// The form that enqueues a generation.

import { ask, enqueue, newKey } from "../data/gateway.js";
import { byId, tell } from "../ui/page.js";

export class Prompt {
  #models = null;
  #draft = { text: "", key: "" };

  constructor() {
    byId("prompt-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    byId("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("send").click();
    });
  }

  /** Loads the models, once. A gateway whose settings have patterns only lists none; then the name is typed in. */
  async load() {
    if (this.#models) return;
    const told = await ask("/v1/models").catch(() => null);
    if (!told || this.#models) return;
    this.#models = told.data.map(({ id }) => id);
    const [menu, field] = [byId("model"), byId("model-name")];
    menu.replaceChildren(...this.#models.map((id) => new Option(id)));
    field.hidden = this.#models.length > 0;
    field.required = menu.hidden = !field.hidden;
  }

  async send() {
    const model = byId("model").value || byId("model-name").value;
    const request = { model, messages: [{ role: "user", content: byId("prompt").value }] };
    const text = JSON.stringify(request);
    // With the same key, a repetition after a lost response returns the same generation.
    if (this.#draft.text !== text) this.#draft = { text, key: newKey() };
    byId("send").disabled = true;
    try {
      location.hash = `#/${(await enqueue(request, this.#draft.key)).id}`;
      this.#draft = { text: "", key: "" };
      tell(byId("prompt-error"), "");
    } catch (error) {
      tell(byId("prompt-error"), error.message);
    }
    byId("send").disabled = false;
  }
}
