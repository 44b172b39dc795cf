// Calls the TypeScript client for a test in another process: jobs on stdin, results on stdout, one JSON object per
// line.
//
//     node client.mjs FOLDER-OF-THE-PACKAGE

import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const { Client, TokencastError, verifyWebhook } = await import(pathToFileURL(`${process.argv[2]}/dist/index.js`));

const send = (job, result) => process.stdout.write(JSON.stringify({ job, ...result }) + "\n");

function describe(error) {
  const { status, code, type, param, requestId, retryAfter } = error;
  const details = { status, code, type, param, request_id: requestId, retry_after: retryAfter };
  return { class: error.name, ours: error instanceof TokencastError, message: error.message, ...details };
}

const plain = (value) => (value instanceof TokencastError ? { error: describe(value) } : value);

const STREAMS = new Set(["follow", "followAll", "activity"]);
const running = new Map();

/** The last argument of a method is its options, in which the driver puts what is no JSON. */
function call(job, client, method, [...given], signal) {
  if (method === "verifyWebhook") return verifyWebhook(...given);
  const onConnection = (state, reason) => send(job, { state: [state, reason?.name ?? null] });
  const options = { ...given.pop(), signal, ...(STREAMS.has(method) ? { onConnection } : {}) };
  return new Client(client)[method.replace("list all", "list")](...given, options);
}

async function work({ job, client, method, arguments: given }) {
  const abort = new AbortController();
  running.set(job, abort);
  try {
    const called = call(job, client, method, given, abort.signal);
    if (called[Symbol.asyncIterator] && method !== "list") {
      for await (const item of called) send(job, { item: plain(item) });
    } else {
      const result = await called;
      send(job, { result: Array.isArray(result) ? result.map(plain) : (result ?? null) });
    }
  } catch (error) {
    send(job, { error: describe(error) });
  }
  send(job, { end: true });
}

createInterface({ input: process.stdin })
  .on("line", (line) => {
    const message = JSON.parse(line);
    if (message.abort) running.get(message.job).abort();
    else void work(message);
  })
  .on("close", () => process.exit(0));
