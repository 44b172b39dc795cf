// Code to copy: to follow a generation, or to repeat its request.

import { key, pathOf } from "../data/gateway.js";

const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
const origin = () => location.origin;
const withKey = () => (key() ? `-H "Authorization: Bearer $TOKENCAST_API_KEY" ` : "");

export const follow = {
  curl: (id) => `curl -N ${withKey()}'${origin()}${pathOf(id)}/events'`,

  python: (id) => `import json, os
from urllib.request import Request, urlopen

headers = {"Authorization": f"Bearer {os.environ.get('TOKENCAST_API_KEY', '')}"}
with urlopen(Request("${origin()}${pathOf(id)}/events", headers=headers)) as events:
    for line in events:
        if line.startswith(b"data: "):
            for choice in json.loads(line[6:]).get("choices", []):
                print(choice["delta"].get("content") or "", end="", flush=True)
`,

  javascript: (id) => `// in a browser; with keys, ask POST ${pathOf(id)}/token for an \`events_url\` instead
const source = new EventSource("${origin()}${pathOf(id)}/events");
source.addEventListener("chunk", ({ data }) => {
  for (const choice of JSON.parse(data).choices) console.log(choice.delta.content ?? "");
});
source.addEventListener("reset", () => console.clear());
for (const ending of ["completed", "failed", "cancelled", "gone"]) {
  source.addEventListener(ending, () => source.close());
}
`,
};

const client = (name) => ({
  python: `from openai import OpenAI

client = OpenAI(base_url="${origin()}/v1", api_key=os.environ.get("TOKENCAST_API_KEY", "none"))`,
  javascript: `import OpenAI from "openai";

const client = new OpenAI({ baseURL: "${origin()}/v1", apiKey: process.env.TOKENCAST_API_KEY ?? "none" });`,
})[name];

export const again = {
  curl: (request) => `curl ${withKey()}-H 'content-type: application/json' \\
  '${origin()}/v1/generations' -d ${shell(JSON.stringify(request))}`,

  python: (request) => `import os
${client("python")}

generation = client.post(
    "/generations",
    cast_to=object,
    body=${literal(request, 1)},
)
print(generation)
`,

  javascript: (request) => `${client("javascript")}

const generation = await client.post("/generations", { body: ${JSON.stringify(request, null, 2)} });
console.log(generation);
`,
};

/** Returns a JSON value as Python code: strings are spelled alike; null, true and false are not. */
function literal(value, depth) {
  const indent = "    ".repeat(depth);
  const lines = (items) => items.map((item) => `${indent}    ${item},\n`).join("");
  const list = (items, [open, close]) => (items.length ? `${open}\n${lines(items)}${indent}${close}` : open + close);
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return list(value.map((item) => literal(item, depth + 1)), "[]");
  if (typeof value !== "object") return JSON.stringify(value);
  const member = ([name, item]) => `${JSON.stringify(name)}: ${literal(item, depth + 1)}`;
  return list(Object.entries(value).map(member), "{}");
}
