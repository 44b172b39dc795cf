// A service with strict settings and without the types of a browser. It is compiled, not run.

import { createServer } from "node:http";

import { Client, RateLimited, TokencastError, verifyWebhook } from "tokencast-client";
import type { Generation, GenerationEvent, GenerationRequest, GenerationSummary } from "tokencast-client";

// The form in which other libraries declare a request: interfaces, with parameters that this package does not know.
interface TheirMessage {
  role: "user";
  content: string;
}
interface TheirRequest {
  model: string;
  messages: TheirMessage[];
  logit_bias?: Record<string, number> | null;
}

const client = new Client({ apiKey: process.env["TOKENCAST_API_KEY"] });
const theirs: TheirRequest = { model: "m", messages: [{ role: "user", content: "Hello." }] };

function shown(event: GenerationEvent): string {
  switch (event.name) {
    case "created":
      return event.data.model;
    case "started":
    case "reset":
      return String(event.data.attempt);
    case "waiting":
      return event.data.reason;
    case "chunk":
      return event.text + String(event.data.choices?.[0]?.delta?.content);
    case "gap":
      return event.data.earliest;
    case "completed":
      return `${event.data.finish_reason} ${event.data.usage?.total_tokens}`;
    case "failed":
      return event.data.error.message;
    case "cancelled":
    case "gone":
      return event.cursor;
  }
}

export async function main(): Promise<void> {
  const priority: number | undefined = Number(process.env["PRIORITY"]) || undefined;
  const generation: Generation = await client.enqueue(theirs, {
    priority,
    runAt: new Date(),
    webhook: "https://example.com",
  });
  await client.enqueue({ model: "m", messages: [], logit_bias: {}, tokencast: { priority: 1 } });
  const request: GenerationRequest = { model: "m", messages: [{ role: "system" }] };
  // @ts-expect-error -- a model is required
  await client.enqueue({ messages: [] });
  // @ts-expect-error -- it is delaySeconds
  await client.enqueue(request, { delay: 3 });

  for (const item of await client.enqueueBatch([request, request], { group: "nightly" })) {
    if (item instanceof RateLimited) console.log(item.retryAfter);
    else if (item instanceof TokencastError) console.log(item.status, item.code, item.param, item.requestId);
    else console.log(item.id);
  }
  for await (const event of client.follow(generation.id, { after: "0-1", signal: AbortSignal.timeout(1000) })) {
    console.log(shown(event));
  }
  const page = await client.list({ status: ["failed", "cancelled"], since: new Date() });
  const newest: GenerationSummary | undefined = page.data[0];
  for await (const { id, error } of client.list({ status: "failed", metadata: { batch: "b1" } }))
    console.log(id, error?.code);
  // @ts-expect-error -- there is no such status
  client.list({ status: "done" });
  for await (const { name, data } of client.activity()) console.log(name === "gap" ? name : data.status);
  const text: string = await client.text(generation.id, { timeout: 1000 });
  const { url } = await client.token(generation.id, { ttlSeconds: 600 });
  console.log(newest?.queue?.position, text, url);
}

createServer(async (incoming, response) => {
  const parts: Buffer[] = [];
  for await (const part of incoming) parts.push(part as Buffer);
  const event = await verifyWebhook(Buffer.concat(parts), incoming.headers, "whsec_…");
  if (event.type === "generation.completed") console.log(event.data.usage?.total_tokens, event.id);
  response.writeHead(204).end();
});
