// The rows of a table, or the cards of a view, which are updated in place: focus and selection are kept.

import { clone, fieldsOf } from "./page.js";

export class Rows {
  /** @type {Map<string, {node: HTMLElement, fields: Record<string, HTMLElement>, item: any}>} by the item's key */
  #rows = new Map();

  /**
   * @param {HTMLElement} body  @param {string} template
   * @param {{key: (item: any) => string, fill: (fields: any, item: any) => void, begin?: (row: any) => void}} how
   *   `begin`: called once for each new row
   */
  constructor(body, template, { key, fill, begin = () => {} }) {
    Object.assign(this, { body, template, key, fill, begin });
  }

  /** Shows these items, in this order. */
  show(items) {
    const wanted = new Set(items.map(this.key));
    for (const [key, { node }] of this.#rows) {
      if (wanted.has(key)) continue;
      this.#rows.delete(key);
      node.remove();
    }
    let next = this.body.firstElementChild;
    for (const item of items) {
      const row = this.#row(this.key(item));
      row.item = item;
      this.fill(row.fields, item);
      if (row.node !== next) this.body.insertBefore(row.node, next);
      next = row.node.nextElementSibling;
    }
  }

  #row(key) {
    if (this.#rows.has(key)) return this.#rows.get(key);
    const node = clone(this.template);
    const row = { node, fields: fieldsOf(node), item: null };
    this.#rows.set(key, row);
    this.begin(row);
    return row;
  }
}
