// The subscribers of one generation at all gateways, with their lag: a part of a page that reads them while it is open.

import { ask, now, pathOf } from "../data/gateway.js";
import { age, make, moment, show } from "./page.js";

const PERIOD = 2000; // ms
const COLUMNS = ["Dialect", "Behind", "For", "Gateway"];

const bytes = (count) => (count < 10_000 ? `${count} bytes` : `${(count / 1024).toFixed(0)} KiB`);

/** "3 events, 64 KiB unread" */
function lagOf({ lag_events, unread_bytes, stalled }) {
  const events = lag_events ? `${lag_events} event${lag_events === 1 ? "" : "s"}` : "";
  const unread = unread_bytes ? `${bytes(unread_bytes)} unread` : "";
  return [events, unread, stalled ? "reads nothing" : ""].filter(Boolean).join(", ") || "up to date";
}

/** Appends the part, closed, to an element; it reads nothing until it is opened, or once it is off the page. */
export function mountSubscribers(parent, id) {
  const state = make("p", { className: "hint", textContent: "Loading…" });
  const names = make("tr", {}, ...COLUMNS.map((name) => make("th", { scope: "col", textContent: name })));
  const rows = make("tbody");
  const table = make("table", { hidden: true }, make("thead", {}, names), rows);
  table.ariaLabel = "Subscribers";
  const part = make("details", { className: "subscribers" }, make("summary", { textContent: "Subscribers" }), state, table);
  let timer = 0;

  const read = async () => {
    if (!part.isConnected) return clearInterval(timer);
    if (document.hidden) return;
    const told = await ask(`${pathOf(id)}/subscribers`).catch((error) => error);
    if (told instanceof Error) return show(state, told.message);
    paint(told);
  };

  const paint = ({ data, gateways }) => {
    const total = gateways.reduce((sum, one) => sum + one.subscribers, 0);
    const where = gateways.length > 1 ? ` at ${gateways.length} gateways` : "";
    const cut = total > data.length ? `; the ${data.length} furthest behind are listed` : "";
    show(state, total ? `${total} open stream${total === 1 ? "" : "s"}${where}${cut}.` : "Nobody follows it.");
    table.hidden = !data.length;
    rows.replaceChildren(
      ...data.map((one) => {
        const since = make("td", { textContent: age(now() / 1000 - one.since), title: moment(one.since).toLocaleString() });
        const lag = make("td", { textContent: lagOf(one), title: `at ${one.cursor}`, className: one.stalled ? "error" : "" });
        const gateway = make("td", { className: "id", textContent: one.gateway });
        return make("tr", {}, make("td", { textContent: one.dialect }), lag, since, gateway);
      }),
    );
  };

  part.addEventListener("toggle", () => {
    clearInterval(timer);
    if (!part.open) return;
    timer = setInterval(read, PERIOD);
    read();
  });
  parent.append(part);
}
