// The hook on a server, and the store that its components share, without a browser.

import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";

import { createElement } from "react";
import { renderToString } from "react-dom/server";

import { Client } from "../dist/index.js";
import { TokencastProvider, useClient, useGeneration } from "../dist/react.js";
import { snapshotOf, subscribe } from "../dist/store.js";
import { chunk, event, refuse, serve, stream } from "./server.mjs";

test("a server renders the state before the first event", () => {
  function Answer({ id }) {
    const { status, content, ended } = useGeneration(id);
    return createElement("p", null, `${useClient().baseUrl} ${status} "${content}" ${ended}`);
  }
  const client = new Client({ baseUrl: "https://tokencast.example" });
  const page = createElement(TokencastProvider, { client }, createElement(Answer, { id: "gen_1" }));
  assert.equal(renderToString(page), "<p>https://tokencast.example queued &quot;&quot; false</p>");
  assert.match(renderToString(createElement(Answer, { id: null })), /http:\/\/127\.0\.0\.1:8000 queued/);
});

/** Wait until the state of a generation meets a condition. */
const until = (client, id, condition) =>
  new Promise((resolve) => {
    const look = () => {
      if (!condition(snapshotOf(client, id))) return;
      leave();
      resolve(snapshotOf(client, id));
    };
    const leave = subscribe(client, id, look);
  });

test("the ending arrives without animation frames, as in a hidden page", async (context) => {
  const server = await serve(context, stream(chunk("1-1", "Hello") + event("1-2", "completed", { usage: null })));
  globalThis.requestAnimationFrame = () => 1;
  globalThis.cancelAnimationFrame = () => undefined;
  context.after(() => {
    delete globalThis.requestAnimationFrame;
    delete globalThis.cancelAnimationFrame;
  });
  const state = await until(new Client(server), "gen_1", ({ connection }) => connection === "closed");
  assert.deepEqual([state.status, state.content, state.ended, state.error], ["completed", "Hello", true, null]);
});

test("listeners share one connection, which the last one closes", async (context) => {
  const closed = [];
  const server = await serve(context, (response, request) => {
    stream(chunk("1-1", "Hello"), { open: true })(response);
    closed.push(once(request.socket, "close"));
  });
  const client = new Client(server);
  const states = await Promise.all([1, 2].map(() => until(client, "gen_1", ({ content }) => content === "Hello")));
  assert.equal(states[0], states[1]);
  await closed[0];
  assert.equal(server.requests.length, 1);
  assert.equal(snapshotOf(client, "gen_1").content, "", "it begins again");
});

test("a final refusal is an error of the state", async (context) => {
  for (const [status, shown] of [
    [404, "gone"],
    [401, "queued"],
  ]) {
    const server = await serve(context, refuse(status, "some_code"));
    const state = await until(new Client(server), "gen_1", ({ ended }) => ended);
    assert.deepEqual([state.status, state.error.code, state.connection], [shown, "some_code", "closed"]);
  }
});
