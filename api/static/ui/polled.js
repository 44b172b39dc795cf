// A view that reads its contents every few seconds while it is visible.

import { byId, tell } from "./page.js";

const PERIOD = 2000; // ms

export class Polled {
  #timer = 0;
  #asking = false;
  #again = false;

  /**
   * @param {string} name  of the view; the element `<name>-trouble` shows why reading failed
   * @param {number} period  ms between two readings
   */
  constructor(name, period = PERIOD) {
    Object.assign(this, { name, period });
  }

  start() {
    if (this.#timer) return;
    this.#timer = setInterval(() => this.refresh(), this.period);
    this.refresh();
  }

  stop() {
    clearInterval(this.#timer);
    this.#timer = 0;
  }

  /** Reads and shows the contents; once more if it is called meanwhile. */
  async refresh() {
    this.#again = this.#asking;
    if (this.#asking) return;
    this.#asking = true;
    try {
      await this.load();
      this.trouble("");
    } catch (error) {
      if (error.status === undefined) throw error;
      this.trouble(error.passes ? "" : error.message); // the connection status shows a temporary one
    } finally {
      this.#asking = false;
    }
    if (this.#again) await this.refresh();
  }

  trouble(text) {
    tell(byId(`${this.name}-trouble`), text);
  }

  /** Runs an action that was confirmed, then shows its result. @param {() => Promise<any>} act */
  async act(act) {
    const error = await act().then(() => null, (error) => error);
    await this.refresh();
    if (error) this.trouble(error.message);
  }
}
