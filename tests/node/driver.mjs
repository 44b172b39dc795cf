// Calls openai-node the way its users do, for a test in another process: a JSON object a line, jobs in, results out.
import { createInterface } from "node:readline";
import OpenAI from "openai";
import { VERSION } from "openai/version";

const say = (job, told) => process.stdout.write(JSON.stringify({ job, ...told }) + "\n");
const headersOf = (response) => Object.fromEntries(response?.headers ?? []);

function told(error) {
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
    say(job, { completion: await completions.create(body, options) });
  } else if (call === "stream" || call === "raw") {
    const stream = call === "stream" || body.stream;
    const { data, response } = await completions.create(stream ? { ...body, stream } : body, options).withResponse();
    say(job, { headers: headersOf(response) });
    if (!stream) return say(job, { completion: data });
    for await (const chunk of data) say(job, { chunk });
  } else if (call === "helper") {
    const stream = completions.stream(body, options);
    stream.on("chunk", (chunk) => say(job, { chunk }));
    say(job, { completion: await stream.finalChatCompletion() });
  } else if (call === "retrieve") {
    say(job, { completion: await completions.retrieve(body.completion_id) });
  } else if (call === "models") {
    const models = [];
    for await (const model of client.models.list()) models.push(model);
    say(job, { models });
  }
}

// The same arguments as openai-python's: headers and unknown parameters have a place of their own there.
async function work({ job, base_url, call, extra_headers, extra_body, ...body }) {
  try {
    await run(job, call, clientOf(base_url), { ...body, ...extra_body }, { headers: extra_headers });
  } catch (error) {
    say(job, { error: told(error) });
  }
  say(job, { end: true });
}

say(0, { version: VERSION });
createInterface({ input: process.stdin }).on("line", (line) => work(JSON.parse(line)));
