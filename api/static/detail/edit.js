// A form with a stored request: to change it and send it as a new generation.

import { isObject } from "../data/completion.js";
import { enqueue, newKey } from "../data/gateway.js";
import { byId, make, tell } from "../ui/page.js";

const isPlain = ({ role, content, ...others }) => role && typeof content === "string" && !Object.keys(others).length;

export class Edit {
  #messages = []; // the messages and their fields
  #draft = { text: "", key: "" };

  constructor() {
    this.dialog = byId("edit");
    byId("edit-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    byId("edit-cancel").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("edit-send").click();
    });
  }

  /** @param {{model: string, messages: object[]}} request */
  open({ model, messages, ...others }) {
    byId("edit-model").value = model;
    this.#messages = messages.map((message, number) => this.#field(message, number));
    byId("edit-messages").replaceChildren(...this.#messages.map(({ label }) => label));
    byId("edit-others").value = JSON.stringify(others, null, 2);
    tell(byId("edit-error"), "");
    this.dialog.showModal();
    this.#messages.at(-1)?.area.focus();
  }

  close() {
    if (this.dialog.open) this.dialog.close();
  }

  #field(message, number) {
    const plain = Boolean(isPlain(message));
    const value = plain ? message.content : JSON.stringify(message, null, 2);
    const rows = Math.min(12, Math.max(2, value.split("\n").length));
    const area = make("textarea", { value, rows, spellcheck: plain });
    const title = `Message ${number + 1}: ${message.role}${plain ? "" : " (JSON)"}`;
    return { message, plain, title, area, label: make("label", {}, title, area) };
  }

  #request() {
    const messages = this.#messages.map(({ message, plain, title, area }) => {
      return plain ? { ...message, content: area.value } : parsed(area.value, title);
    });
    const others = parsed(byId("edit-others").value || "{}", "Parameters (JSON)");
    return { ...others, model: byId("edit-model").value.trim(), messages };
  }

  async #send() {
    byId("edit-send").disabled = true;
    try {
      const request = this.#request();
      const text = JSON.stringify(request);
      // With the same key, a repetition after a lost response returns the same generation.
      if (this.#draft.text !== text) this.#draft = { text, key: newKey() };
      const { id } = await enqueue(request, this.#draft.key);
      this.#draft = { text: "", key: "" };
      this.close();
      location.hash = `#/${id}`;
    } catch (error) {
      tell(byId("edit-error"), error.message);
    }
    byId("edit-send").disabled = false;
  }
}

function parsed(text, title) {
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(`${title}: ${error.message}`);
  }
  if (!isObject(value)) throw new Error(`${title}: not a JSON object`);
  return value;
}
