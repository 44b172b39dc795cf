// The page: selects the view, starts and stops what runs in the background, shows connection errors and the key form.

import { Follower } from "./data/follower.js";
import { access, keep, key } from "./data/gateway.js";
import { Generations } from "./data/generations.js";
import { me } from "./data/operator.js";
import { press, showKeys } from "./detail/keys.js";
import { byId, show, tell } from "./ui/page.js";
import { again } from "./ui/snippets.js";
import { Bulk } from "./views/bulk.js";
import { Detail } from "./views/detail.js";
import { ErrorsView } from "./views/errors.js";
import { HistoryView } from "./views/history.js";
import { List } from "./views/list.js";
import { Overview } from "./views/overview.js";
import { Prompt } from "./views/prompt.js";
import { QueueView } from "./views/queue.js";
import { UpstreamsView } from "./views/upstreams.js";
import { Chosen, Wall } from "./views/wall.js";
import { WorkersView } from "./views/workers.js";

const follower = new Follower();
const chosen = new Chosen();
const generations = new Generations(
  (changed) => list.update(changed),
  (state, message) => showConnection(state, message),
);
const overview = new Overview((trouble) => {
  if (view !== "list") showConnection(trouble ? "reconnecting" : "live", trouble?.message); // no stream reports it
  detail?.tick();
  if (view === "list" && !trouble) list.refreshWaiting();
});
const list = new List(generations, chosen, overview, () => onFilter());
const bulk = new Bulk(list, chosen, generations);
const wall = new Wall(follower, chosen, generations.known);
const prompt = new Prompt();
const pages = {
  queue: new QueueView(),
  upstreams: new UpstreamsView(),
  errors: new ErrorsView(),
  history: new HistoryView(),
  workers: new WorkersView(),
};
const TITLES = {
  wall: "Wall",
  queue: "Queue",
  upstreams: "Upstreams",
  errors: "Errors",
  history: "History",
  workers: "Workers",
};

let view = "";
let detail = null;
let denied = false;

/**
 * `#/` the list, `#/?status=failed&model=…` with filters, `#/gen_…` one generation, `#/gen_…?at=CURSOR` at a moment, `#/wall` and
 * `#/wall/gen_…,gen_…` several, and the names of the pages, such as `#/history?model=…`.
 */
function route() {
  const path = location.hash.replace(/^#\/?/, "");
  const [, id, at] = path.match(/^(gen_[0-9a-z]{34})(?:\?at=(\d+-\d+))?$/) ?? [];
  const ids = path.match(/^wall(?:\/(.*))?$/)?.[1]?.split(",").filter((id) => /^gen_[0-9a-z]{34}$/.test(id)) ?? [];
  const before = detail?.id;
  if (detail && detail.id !== id) {
    detail.close();
    detail.root.remove();
    detail = null;
  }
  const [page, query = ""] = path.split(/\?(.*)/s);
  view = id ? "detail" : /^wall(\/|$)/.test(path) ? "wall" : Object.hasOwn(pages, page) ? page : "list";
  for (const name of ["list", "detail", "wall", ...Object.keys(pages)]) byId(`view-${name}`).hidden = name !== view;
  for (const link of document.querySelectorAll("nav a")) link.ariaCurrent = link.dataset.view === view ? "page" : null;
  if (view !== "wall") wall.close();
  if (view !== "detail") document.title = [TITLES[view], "Tokencast"].filter(Boolean).join(" · ");
  if (id && !detail) {
    detail = new Detail(id, { follower, chosen, overview, at });
    byId("view-detail").append(detail.root);
    detail.focus();
  } else if (at) {
    detail.goTo(at);
  }
  if (view === "wall") wall.open(ids);
  pages[view]?.open?.(query);
  if (view === "list") list.query = path.replace(/^\?/, "");
  if (view === "list" && before) list.focus(before);
  run();
}

const listHash = () => `#/${list.query && `?${list.query}`}`;

/** Keeps the filters in the address, also for those who return to the list. */
function onFilter() {
  if (view === "list" && location.hash !== listHash()) history.replaceState(null, "", listHash());
  document.querySelector('nav a[data-view="list"]').href = listHash();
  bulk.paint();
}

/** Runs only what is visible: a page has one stream, of the list or of what it follows; a hidden page has none. */
function run() {
  const on = !document.hidden && !denied;
  if (on) follower.resume();
  else follower.pause();
  if (on && view === "list") generations.watch();
  else generations.unwatch();
  if (on) overview.start();
  else overview.stop();
  if (on && view === "list") list.start();
  else list.stop();
  for (const [name, page] of Object.entries(pages)) {
    if (on && view === name) page.start();
    else page.stop();
  }
  if (on) prompt.load();
  if (on) identify();
}

/** Shows whose key it is; the elements that it has no use for are hidden. */
async function identify() {
  const caller = await me().catch(() => null); // the connection status shows the error
  if (!caller) return;
  const { tenant, role, tenants } = caller;
  list.columns.showTenants(tenants.length > 1);
  for (const name of tenants.length > 1 ? tenants : []) list.filters.offer("tenant", name);
  bulk.paint();
  tell(byId("caller"), key() ? `${tenant}${{ read: ", read only", operator: ", operator" }[role] ?? ""}` : "");
}

function showConnection(state, message = "") {
  show(byId("connection"), state === "refused" ? "not connected" : state);
  byId("connection").dataset.state = state;
  const again = state === "reconnecting";
  tell(byId("trouble"), again ? `${message || "The gateway does not answer."} Retrying…` : message);
  if (state !== "live") return;
  prompt.load();
  identify();
}

access.addEventListener("denied", () => {
  if (denied) return;
  denied = true;
  run();
  wall.close();
  tell(byId("trouble"), "");
  document.body.dataset.denied = "yes";
  byId("key-form").hidden = false;
  show(byId("key-state"), key() ? "This API key is not valid for this gateway." : "This gateway requires an API key.");
  byId("key").focus();
  showConnection("refused");
});

function useKey(text) {
  keep(text);
  location.reload();
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value.trim());
});
byId("forget-key").hidden = !key();
byId("forget-key").addEventListener("click", () => useKey(""));

chosen.addEventListener("change", () => {
  markWall();
  list.mark();
  bulk.paint();
  detail?.paint();
});

function markWall() {
  const [link] = document.querySelectorAll('nav a[data-view="wall"]');
  link.href = chosen.hash;
  show(link, chosen.size ? `Wall (${chosen.size})` : "Wall");
}

addEventListener("hashchange", route);
document.addEventListener("visibilitychange", run);
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input:not([type=range]), textarea, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === " " && detail && event.target.matches("body, h2")) {
    event.preventDefault();
    detail.toggle();
  }
  if (event.key === "?") return showKeys();
  if (document.querySelector("dialog[open]")) return;
  if (detail && press(event, detail)) return event.preventDefault();
  if (event.key === "Escape" && view !== "list") location.hash = listHash();
  if (view === "list" && event.target.matches("body, main") && /^(Arrow(Up|Down)|[jk])$/.test(event.key)) list.key(event);
  if (event.key === "/" && view === "list") {
    event.preventDefault();
    byId("filter-search").focus();
  }
});
show(byId("welcome-curl"), again.curl({ model: "gabforge-coder", messages: [{ role: "user", content: "Hello?" }] }));
markWall();
bulk.paint();
route();
