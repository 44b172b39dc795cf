// Calls openai-node as its users do, for a test in another process: jobs on stdin, results on stdout, one JSON object
// per line.
import { createInterface } from "node:readline";
import OpenAI from "openai";
import { VERSION } from "openai/version";

const send = (job, result) => process.stdout.write(JSON.stringify({ job, ...result }) + "\n");
const headersOf = (response) => Object.fromEntries(response?.headers ?? []);

function describe(error) {
  return {
    class: error.constructor.name,
    api_error: error instanceof OpenAI.APIError,
    status: error.status ?? null,
    headers: Object.fromEntries(error.headers ?? []),
    message: error.message,
    code: error.code ?? null,
    param: error.param ?? null,
    type: error.type ?? null,
  };
}

const clients = new Map();
function clientOf(baseURL) {
  if (!clients.has(baseURL)) clients.set(baseURL, new OpenAI({ baseURL, apiKey: "key" }));
  return clients.get(baseURL);
}

async function run(job, call, client, body, options) {
  const completions = client.chat.completions;
  if (call === "create") {
    send(job, { completion: await completions.create(body, options) });
  } else if (call === "stream" || call === "raw") {
    const stream = call === "stream" || body.stream;
    const { data, response } = await completions.create(stream ? { ...body, stream } : body, options).withResponse();
    send(job, { headers: headersOf(response) });
    if (!stream) return send(job, { completion: data });
    for await (const chunk of data) send(job, { chunk });
  } else if (call === "helper") {
    const stream = completions.stream(body, options);
    stream.on("chunk", (chunk) => send(job, { chunk }));
    send(job, { completion: await stream.finalChatCompletion() });
  } else if (call === "retrieve") {
    send(job, { completion: await completions.retrieve(body.completion_id) });
  } else if (call === "models") {
    const models = [];
    for await (const model of client.models.list()) models.push(model);
    send(job, { models });
  }
}

// The same arguments as openai-python's, which passes headers and unknown parameters separately.
async function work({ job, base_url, call, extra_headers, extra_body, ...body }) {
  try {
    await run(job, call, clientOf(base_url), { ...body, ...extra_body }, { headers: extra_headers });
  } catch (error) {
    send(job, { error: describe(error) });
  }
  send(job, { end: true });
}

send(0, { version: VERSION });
createInterface({ input: process.stdin }).on("line", (line) => work(JSON.parse(line)));
