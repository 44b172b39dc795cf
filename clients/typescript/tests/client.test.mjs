// Requests: repetition, errors, and what is sent.

import assert from "node:assert/strict";
import { test } from "node:test";

import {
  BadRequest,
  Client,
  Conflict,
  RateLimited,
  ServerError,
  UnexpectedResponse,
  Unreachable,
} from "../dist/index.js";
import { json, refuse, serve } from "./server.mjs";

const GENERATION = { id: "gen_1", object: "generation", status: "queued" };
const REQUEST = { model: "m", messages: [{ role: "user", content: "Hello." }] };
const vanish = (response) => response.socket.resetAndDestroy();

test("a request is repeated with the same idempotency key", async (context) => {
  const later = { "retry-after": "0" };
  const server = await serve(context, vanish, refuse(503, "storage_unavailable", later), json(202, GENERATION));
  assert.deepEqual(await new Client(server).enqueue(REQUEST), GENERATION);
  const keys = server.requests.map(({ headers }) => headers["idempotency-key"]);
  assert.match(keys[0], /^[0-9a-f]{32}$/);
  assert.deepEqual(keys, [keys[0], keys[0], keys[0]]);
  await new Client(server).enqueue(REQUEST);
  assert.notEqual(server.requests.at(-1).headers["idempotency-key"], keys[0]);
});

test("a response whose body breaks off is requested again", async (context) => {
  const half = (response) => {
    response.writeHead(200, { "content-type": "application/json", "content-length": "100" });
    response.write("{", () => response.socket.resetAndDestroy());
  };
  const server = await serve(context, half, json(200, GENERATION));
  assert.deepEqual(await new Client(server).get("gen_1"), GENERATION);
});

test("options become fields of the object tokencast", async (context) => {
  const server = await serve(context, json(202, GENERATION));
  const client = new Client({ ...server, apiKey: "key-anna", headers: { "x-team": "a" } });
  const tokencast = { priority: 5 };
  await client.enqueue(
    { ...REQUEST, temperature: 0, tokencast },
    {
      priority: 1,
      delaySeconds: 2,
      queueTimeoutSeconds: 60,
      group: "g",
      webhook: "https://example.com/hook",
      onUpstreamError: "continue",
      ttlSeconds: 10,
      metadata: { order: "17" },
      idempotencyKey: "order-17",
    },
  );
  await client.enqueue(REQUEST, { runAt: new Date(1_700_000_000_500) });
  await client.enqueue(REQUEST);
  const [first, second, third] = server.requests.map(({ body }) => JSON.parse(body));
  assert.deepEqual(first, {
    ...REQUEST,
    temperature: 0,
    tokencast: {
      priority: 5,
      delay_seconds: 2,
      queue_timeout: 60,
      group: "g",
      webhook: { url: "https://example.com/hook" },
      on_upstream_error: "continue",
      ttl_seconds: 10,
      metadata: { order: "17" },
    },
  });
  assert.deepEqual(second.tokencast, { run_at: 1_700_000_000.5 });
  assert.deepEqual(third, REQUEST);
  const { headers } = server.requests[0];
  assert.deepEqual(
    [headers.authorization, headers["x-team"], headers["idempotency-key"], headers["content-type"]],
    ["Bearer key-anna", "a", "order-17", "application/json"],
  );
});

test("final errors are thrown at once", async (context) => {
  for (const [reply, kind] of [
    [refuse(400, "invalid_type"), BadRequest],
    [refuse(500, "internal_error"), ServerError],
    [refuse(409, "not_ended"), Conflict],
    [refuse(422, "idempotency_conflict"), Conflict],
    [refuse(422, "other"), BadRequest],
    [refuse(502, "upstream_auth", { "x-should-retry": "false" }), ServerError],
    [refuse(429, "rate_limit_exceeded", { "retry-after": "60" }), RateLimited],
    [(response) => response.end("<h1>Welcome</h1>"), UnexpectedResponse],
    [json(200, { hello: "world" }), UnexpectedResponse],
  ]) {
    const server = await serve(context, reply);
    await assert.rejects(new Client(server).enqueue(REQUEST), (error) => {
      assert.equal(error.constructor, kind);
      assert.equal(error.name, kind.name);
      if (kind === RateLimited) assert.equal(error.retryAfter, 60);
      return true;
    });
    assert.equal(server.requests.length, 1);
  }
});

test("a temporary error is thrown after the last repetition", async (context) => {
  const server = await serve(context, refuse(503, "storage_unavailable", { "retry-after": "0" }));
  await assert.rejects(new Client({ ...server, maxRetries: 1 }).get("gen_1"), { name: "ServerError", status: 503 });
  assert.equal(server.requests.length, 2);
  await assert.rejects(new Client({ baseUrl: "http://127.0.0.1:9", maxRetries: 0 }).get("gen_1"), Unreachable);
});

test("a gateway that does not respond in time is unreachable", async (context) => {
  const server = await serve(context, () => undefined);
  await assert.rejects(
    new Client({ ...server, timeout: 20, maxRetries: 0 }).get("gen_1"),
    /has not responded within 20 ms/,
  );
  const signal = AbortSignal.timeout(20);
  await assert.rejects(new Client(server).get("gen_1", { signal }), { name: "TimeoutError" });
});

test("deleting succeeds if a repetition finds it deleted", async (context) => {
  const server = await serve(context, vanish, refuse(410, "generation_gone"));
  await new Client(server).delete("gen_1");
  await assert.rejects(new Client(server).delete("gen_1"), { name: "Gone" });
});

test("a batch has a generation or an error for each request", async (context) => {
  const error = {
    message: "Full.",
    type: "rate_limit_error",
    param: null,
    code: "rate_limit_exceeded",
    status: 429,
    retry_after: 7,
  };
  const server = await serve(context, json(200, { object: "list", data: [GENERATION, { error }] }));
  const [first, second] = await new Client(server).enqueueBatch([REQUEST, { ...REQUEST, tokencast: { group: "b" } }], {
    group: "a",
  });
  assert.deepEqual(first, GENERATION);
  assert.ok(second instanceof RateLimited);
  assert.deepEqual([second.message, second.retryAfter, second.requestId], ["Full.", 7, "req_1"]);
  const { generations } = JSON.parse(server.requests[0].body);
  assert.deepEqual(
    generations.map(({ tokencast }) => tokencast.group),
    ["a", "b"],
  );
});

test("a list is a page, or all generations", async (context) => {
  const page = (data, last_id, has_more) =>
    json(200, { object: "list", data: data.map((id) => ({ id })), has_more, last_id });
  const pages = () => [
    page(["gen_3", "gen_2"], "gen_2", true),
    page([], "gen_x", true),
    page(["gen_1"], "gen_1", false),
  ];
  const server = await serve(context, ...pages(), ...pages());
  const client = new Client(server);
  const filters = {
    status: ["failed", "cancelled"],
    metadata: { "a b": "ü" },
    since: new Date(1500),
    limit: 2,
    after: "gen_9",
  };
  const ids = [];
  for await (const { id } of client.list(filters)) ids.push(id);
  assert.deepEqual(ids, ["gen_3", "gen_2", "gen_1"]);
  const asked = server.requests.map(({ url }) => new URL(url, "http://x").searchParams);
  assert.deepEqual(
    [...asked[0]],
    [
      ["status", "failed"],
      ["status", "cancelled"],
      ["metadata[a b]", "ü"],
      ["since", "1.5"],
      ["limit", "2"],
      ["after", "gen_9"],
    ],
  );
  assert.deepEqual(
    asked.slice(1).map((query) => query.getAll("after")),
    [["gen_2"], ["gen_x"]],
  );
  const first = await client.list();
  assert.deepEqual([first.data.length, first.has_more, first.last_id], [2, true, "gen_2"]);
});

test("an address that cannot be that of a gateway is refused", () => {
  for (const baseUrl of [
    "",
    "tokencast",
    "ftp://host",
    "http://host/v1",
    "http://me:secret@host",
    "http://host/?a=b",
  ]) {
    assert.throws(
      () => new Client({ baseUrl }),
      (error) => error instanceof TypeError && !/secret/.test(error.message),
    );
  }
  assert.equal(new Client({ baseUrl: "https://host:8443/llm/" }).baseUrl, "https://host:8443/llm");
});

test("a key that is no header value is refused without being shown", () => {
  for (const apiKey of ["two words", "line\n", "ключ", ""]) {
    assert.throws(
      () => new Client({ apiKey }),
      (error) => error instanceof TypeError && !(apiKey && error.message.includes(apiKey)),
    );
  }
});

test("settings come from the environment", async (context) => {
  const server = await serve(context, json(200, GENERATION));
  Object.assign(process.env, { TOKENCAST_URL: `${server.baseUrl}/`, TOKENCAST_API_KEY: "key-anna" });
  context.after(() => ["TOKENCAST_URL", "TOKENCAST_API_KEY"].forEach((name) => delete process.env[name]));
  await new Client().get("gen_1", { include: "request" });
  assert.equal(server.requests[0].url, "/v1/generations/gen_1?include=request");
  assert.equal(server.requests[0].headers.authorization, "Bearer key-anna");
});

test("a key in the headers takes precedence over that of the environment", async (context) => {
  const server = await serve(context, json(200, GENERATION));
  process.env.TOKENCAST_API_KEY = "of-the-service";
  context.after(() => delete process.env.TOKENCAST_API_KEY);
  await new Client({ ...server, headers: { Authorization: "Bearer other" } }).get("gen_1");
  await new Client({ ...server, headers: { Authorization: "Bearer other" }, apiKey: "given" }).get("gen_1");
  assert.deepEqual(
    server.requests.map(({ headers }) => headers.authorization),
    ["Bearer other", "Bearer given"],
  );
});

test("a request that is no JSON is the caller's error", async (context) => {
  const server = await serve(context, json(202, GENERATION));
  await assert.rejects(new Client(server).enqueue({ ...REQUEST, seed: 1n }), TypeError);
  assert.equal(server.requests.length, 0);
});

test("printing a client does not show its key", async () => {
  const { inspect } = await import("node:util");
  assert.doesNotMatch(inspect(new Client({ apiKey: "key-anna" }), { depth: 9, showHidden: true }), /key-anna/);
});
