// A server that answers each request as the test says, over real connections.

import { once } from "node:events";
import { createServer } from "node:http";

/** Serve one request after the other with these functions; the last one serves all that follow. */
export async function serve(context, ...replies) {
  const requests = [];
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const part of request.setEncoding("utf-8")) body += part;
    requests.push({ method: request.method, url: request.url, headers: request.headers, body });
    const reply = replies.length > 1 ? replies.shift() : replies[0];
    await reply(response, request);
  });
  await once(server.listen(0, "127.0.0.1"), "listening");
  context.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return { baseUrl: `http://127.0.0.1:${server.address().port}`, requests };
}

export const json =
  (status, body, headers = {}) =>
  (response) => {
    response.writeHead(status, { "content-type": "application/json", "x-request-id": "req_1", ...headers });
    response.end(JSON.stringify(body));
  };

export const refuse = (status, code, headers = {}) =>
  json(status, { error: { message: "No.", type: "t", param: null, code } }, headers);

/** An event stream that ends after this text, or stays open. */
export const stream =
  (text, { open = false } = {}) =>
  (response) => {
    response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8" });
    response.flushHeaders();
    if (text) response.write(text);
    if (!open) response.end();
  };

/** An event stream that breaks off after this text. */
export const broken = (text) => (response) => {
  response.writeHead(200, { "content-type": "text/event-stream" });
  response.write(text, () => response.socket.resetAndDestroy());
};

export const event = (id, name, data = {}) => `${id && `id: ${id}\n`}event: ${name}\ndata: ${JSON.stringify(data)}\n\n`;

export const chunk = (id, content) => event(id, "chunk", { choices: [{ index: 0, delta: { content } }] });
