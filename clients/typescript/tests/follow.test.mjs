// Streams that outlive their connections.

import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";

import { Client, NotFound, Unauthorized, UnexpectedResponse, Unreachable } from "../dist/index.js";
import { Resumption } from "../dist/follow.js";
import { broken, chunk, event, json, refuse, serve, stream } from "./server.mjs";

const RETRY = "retry: 1\n\n";

async function followed(baseUrl, options = {}, client = {}) {
  const names = [];
  for await (const { name, cursor, text } of new Client({ baseUrl, ...client }).follow("gen_1", options)) {
    names.push([name, cursor, text]);
  }
  return names;
}

const lastIds = ({ requests }) => requests.map(({ headers }) => headers["last-event-id"]);

test("a stream that ends without a terminal event continues after its last id", async (context) => {
  const server = await serve(
    context,
    stream(event("0-1", "created") + event("1-0", "started", { attempt: 1 }) + chunk("1-1", "One ") + RETRY),
    broken(`${RETRY}${chunk("1-2", "two ")}id: 1-3\nevent: chunk\ndata: {"cho`),
    stream(RETRY),
    stream(
      chunk("1-3", "three") + event("1-4", "news") + event("1-5", "completed", { finish_reason: "stop", usage: null }),
    ),
  );
  assert.deepEqual(await followed(server.baseUrl), [
    ["created", "0-1", ""],
    ["started", "1-0", ""],
    ["chunk", "1-1", "One "],
    ["chunk", "1-2", "two "],
    ["chunk", "1-3", "three"],
    ["completed", "1-5", ""],
  ]);
  assert.deepEqual(lastIds(server), [undefined, "1-1", "1-2", "1-2"]);
});

test("connections of streams that have ended are used again", async (context) => {
  const sockets = new Set();
  const server = await serve(context, (response, request) => {
    sockets.add(request.socket);
    stream(event("1-1", "cancelled"))(response);
  });
  for (let count = 0; count < 8; count++) await followed(server.baseUrl);
  assert.ok(sockets.size <= 2, `${sockets.size} connections`); // fetch may open another one before it notices
});

test("a response that does not end after its last event is left", async (context) => {
  const server = await serve(context, stream(event("1-1", "cancelled"), { open: true }));
  assert.deepEqual(await followed(server.baseUrl), [["cancelled", "1-1", ""]]);
  assert.equal(server.requests.length, 1);
});

test("a bare id is the position of a reader that begins at the newest event", async (context) => {
  const server = await serve(context, stream(`id: 1-7\n\n${RETRY}`), stream(event("1-8", "cancelled")));
  assert.deepEqual(await followed(server.baseUrl, { after: "latest" }), [["cancelled", "1-8", ""]]);
  assert.deepEqual(
    server.requests.map(({ url }) => url.split("?")[1]),
    ["after=latest", undefined],
  );
  assert.deepEqual(lastIds(server), [undefined, "1-7"]);
});

test("an event without an id has the position of the last one", async (context) => {
  const server = await serve(context, stream(chunk("1-1", "a") + RETRY), stream(event("", "gap") + event("", "gone")));
  assert.deepEqual(await followed(server.baseUrl), [
    ["chunk", "1-1", "a"],
    ["gap", "1-1", ""],
    ["gone", "1-1", ""],
  ]);
});

test("204 ends a stream, and temporary refusals do not", async (context) => {
  const server = await serve(
    context,
    refuse(503, "storage_unavailable", { "retry-after": "0" }),
    refuse(429, "rate_limit_exceeded", { "retry-after": "0" }),
    refuse(502, null, { "retry-after": "0" }),
    (response) => response.writeHead(204).end(),
  );
  const states = [];
  const onConnection = (state, reason) => states.push([state, reason?.status]);
  assert.deepEqual(await followed(server.baseUrl, { onConnection }), []);
  assert.deepEqual(states, [
    ["connecting", undefined],
    ["reconnecting", 503],
    ["reconnecting", 429],
    ["reconnecting", 502],
  ]);
});

test("a stream that is refused for load says why", async (context) => {
  const text = `${RETRY.trimEnd()}\n: It is full.\n\n`;
  const refused = (response) => {
    response.writeHead(200, { "content-type": "text/event-stream", "content-length": text.length }).end(text);
  };
  const server = await serve(context, refused, stream(event("1-1", "cancelled")));
  const states = [];
  await followed(server.baseUrl, { onConnection: (state, reason) => states.push([state, reason?.message]) });
  assert.deepEqual(states, [
    ["connecting", undefined],
    ["reconnecting", "It is full."],
    ["live", undefined],
  ]);
});

test("final refusals are thrown", async (context) => {
  for (const [status, kind] of [
    [401, Unauthorized],
    [404, NotFound],
  ]) {
    const server = await serve(context, refuse(status, "some_code"));
    await assert.rejects(followed(server.baseUrl), (error) => {
      assert.ok(error instanceof kind);
      assert.deepEqual(
        [error.status, error.code, error.requestId, error.message],
        [status, "some_code", "req_1", "No."],
      );
      return true;
    });
    assert.equal(server.requests.length, 1);
  }
  const page = (response) => response.writeHead(200, { "content-type": "text/html" }).end("<h1>Welcome</h1>");
  await assert.rejects(followed((await serve(context, page)).baseUrl), UnexpectedResponse);
});

test("a page of a proxy where a gateway was before is temporary", async (context) => {
  const page = (response) => response.writeHead(200, { "content-type": "text/html" }).end("<h1>Soon</h1>");
  const server = await serve(context, stream(RETRY), page, stream(event("1-1", "cancelled")));
  assert.deepEqual(await followed(server.baseUrl), [["cancelled", "1-1", ""]]);
});

test("the reason of an aborted signal is thrown, and the connection closed", async (context) => {
  const closed = [];
  const server = await serve(context, (response, request) => {
    stream(chunk("1-1", "a") + chunk("1-2", "b"), { open: true })(response);
    closed.push(once(request.socket, "close"));
  });
  const abort = new AbortController();
  const reason = new Error("enough");
  const events = new Client(server).follow("gen_1", { signal: abort.signal });
  assert.equal((await events.next()).value.text, "a");
  abort.abort(reason);
  await assert.rejects(events.next(), reason);
  await closed[0];
  await assert.rejects(new Client(server).follow("gen_1", { signal: abort.signal }).next(), reason);
  assert.equal(server.requests.length, 1);
});

test("leaving the loop closes the connection", async (context) => {
  const closed = [];
  const server = await serve(context, (response, request) => {
    stream(chunk("1-1", "a"), { open: true })(response);
    closed.push(once(request.socket, "close"));
  });
  for await (const { text } of new Client(server).follow("gen_1")) {
    assert.equal(text, "a");
    break;
  }
  await closed[0];
});

test("a gateway that never responds is given up", async () => {
  const client = new Client({ baseUrl: "http://127.0.0.1:9" });
  await assert.rejects(client.follow("gen_1", { giveUpAfter: -1 }).next(), (error) => {
    assert.ok(error instanceof Unreachable && error.cause);
    return true;
  });
});

test("an error in onConnection is the caller's, and ends nothing", async (context) => {
  const server = await serve(context, stream(event("1-1", "cancelled")));
  const thrown = [];
  const keep = (error) => thrown.push(error.message);
  process.setUncaughtExceptionCaptureCallback(keep);
  const onConnection = (state) => {
    throw new Error(state);
  };
  assert.deepEqual(await followed(server.baseUrl, { onConnection }), [["cancelled", "1-1", ""]]);
  process.setUncaughtExceptionCaptureCallback(null);
  assert.deepEqual(thrown, ["connecting", "live"]);
});

test("a token is requested for each connection, and no key is sent with it", async (context) => {
  process.env.TOKENCAST_API_KEY = "of-the-service";
  context.after(() => delete process.env.TOKENCAST_API_KEY);
  const server = await serve(context, stream(RETRY), stream(event("1-1", "cancelled")));
  let count = 0;
  await followed(server.baseUrl, {}, { token: async (id) => `${id}/${++count}` });
  assert.deepEqual(
    server.requests.map(({ url }) => url),
    ["/v1/generations/gen_1/events?token=gen_1%2F1", "/v1/generations/gen_1/events?token=gen_1%2F2"],
  );
  assert.deepEqual(
    server.requests.map(({ headers }) => headers.authorization),
    [undefined, undefined],
  );
});

test("a token function that fails is called again", async (context) => {
  const server = await serve(context, stream(event("1-1", "cancelled")));
  let count = 0;
  const token = () => (++count === 1 ? Promise.reject(new Error("down")) : "t");
  const reasons = [];
  await followed(server.baseUrl, { onConnection: (_, reason) => reason && reasons.push(reason) }, { token });
  assert.deepEqual([reasons.length, reasons[0].name, reasons[0].cause.message], [1, "Unreachable", "down"]);
});

test("several generations on one connection continue at their own cursors", async (context) => {
  const told = (generation, cursor, name, data = {}) => event("", name, { generation, cursor, data });
  const said = (generation, cursor, content) =>
    told(generation, cursor, "chunk", { choices: [{ index: 0, delta: { content } }] });
  const server = await serve(
    context,
    stream(said("gen_1", "9-9", "a") + said("gen_2", "1-1", "b") + told("gen_3", "2-0", "cancelled") + RETRY),
    stream(said("gen_1", "9-9", "a") + said("gen_1", "10-1", "c") + told("gen_2", "0-0", "reset") + RETRY),
    stream(said("gen_2", "1-1", "b") + told("gen_1", "10-2", "completed") + told("gen_2", "", "gone")),
  );
  const events = [];
  for await (const { generation, name, text } of new Client(server).followAll(["gen_1@9-8", "gen_2", "gen_3@latest"])) {
    events.push(`${generation} ${name} ${text}`);
  }
  assert.deepEqual(events, [
    "gen_1 chunk a",
    "gen_2 chunk b",
    "gen_3 cancelled ",
    "gen_1 chunk c",
    "gen_2 reset ",
    "gen_2 chunk b",
    "gen_1 completed ",
    "gen_2 gone ",
  ]);
  const asked = server.requests.map(({ url }) => new URL(url, server.baseUrl).searchParams.getAll("generation"));
  assert.deepEqual(asked, [
    ["gen_1@9-8", "gen_2", "gen_3@latest"],
    ["gen_1@9-9", "gen_2@1-1"],
    ["gen_1@10-1", "gen_2"],
  ]);
});

test("the text begins again with a new attempt, and an incomplete one is an error", async (context) => {
  const failed = { id: "gen_1", object: "generation", status: "failed", error: { message: "It broke.", code: "c" } };
  const events = chunk("1-1", "a") + chunk("1-2", "b") + event("2-0", "reset", { attempt: 2 }) + chunk("2-1", "c");
  const server = await serve(context, stream(events + event("2-2", "failed", {})), json(200, failed));
  const texts = [];
  const reading = async () => {
    for await (const text of new Client(server).streamText("gen_1")) texts.push(text);
  };
  await assert.rejects(reading(), { name: "GenerationFailed", message: "It broke.", code: "c" });
  assert.deepEqual(texts, ["a", "ab", "c"]);
});

test("waiting ends with its timeout", async (context) => {
  const server = await serve(context, stream("", { open: true }));
  await assert.rejects(new Client(server).wait("gen_1", { timeout: 20 }), { name: "WaitTimeout" });
});

test("an event that is not JSON is an error", async (context) => {
  const server = await serve(context, stream("id: 1-1\nevent: chunk\ndata: {\n\n"));
  await assert.rejects(followed(server.baseUrl), UnexpectedResponse);
});

test("activity has the generation in each event", async (context) => {
  const server = await serve(context, stream(event("17", "completed", { id: "gen_1" }), { open: true }));
  for await (const told of new Client(server).activity({ group: "a b" })) {
    assert.deepEqual(told, { name: "completed", cursor: "17", data: { id: "gen_1" } });
    break;
  }
  assert.equal(server.requests[0].url, "/v1/activity?group=a+b");
});

// --- the state machine ------------------------------------------------------------------------------------------------

const message = (id) => ({ event: "chunk", data: "{}", id });

test("delays grow while there is no progress, and have jitter", () => {
  const state = new Resumption(undefined);
  for (const longest of [500, 1000, 2000, 4000, 5000, 5000]) {
    const delay = state.next();
    assert.ok(delay >= longest / 2 && delay <= longest, `${delay} of ${longest}`);
  }
  state.received(message("1-1"));
  assert.ok(state.next() <= 250);
});

test("the delay that the server asks for applies once", () => {
  const state = new Resumption(undefined);
  state.delay(7000);
  assert.equal(state.next(), 7000);
  assert.ok(state.next() <= 1000);
  state.delay(10 ** 9);
  assert.equal(state.next(), 120_000);
});

test("the caller's cursor applies until there is an id", () => {
  const state = new Resumption("1-4");
  assert.deepEqual(state.position, { query: [["after", "1-4"]], headers: {} });
  state.received(message(""));
  assert.deepEqual(state.position, { query: [["after", "1-4"]], headers: {} });
  state.received(message("1-5"));
  state.received(message(""));
  assert.deepEqual(state.position, { query: [], headers: { "last-event-id": "1-5" } });
});

test("it gives up after a time without any response, which begins with the first failure", () => {
  let now = 0;
  const state = new Resumption(undefined, 1000, () => now);
  now = 5000; // however long the connection was open, and its reader busy
  assert.notEqual(state.next(), null);
  now = 6000;
  assert.notEqual(state.next(), null);
  now = 6001;
  assert.equal(state.next(), null);
  state.heard();
  assert.notEqual(state.next(), null);
});
