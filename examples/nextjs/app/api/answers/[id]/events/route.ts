// GET /api/answers/ID/events: passes the events on. A browser that comes back sends its Last-Event-ID and misses nothing,
// also if another instance of this server, or a new deployment, answers.

import { tokencast } from "../../../../tokencast";

export const dynamic = "force-dynamic";

type Context = { params: Promise<{ id: string }> };

export async function GET(request: Request, { params }: Context): Promise<Response> {
  const { id } = await params; // check here whether your user may read this answer
  const last = request.headers.get("last-event-id");
  const response = await tokencast(`/v1/generations/${encodeURIComponent(id)}/events`, {
    headers: { accept: "text/event-stream", ...(last ? { "last-event-id": last } : {}) },
    signal: request.signal, // the reader has left; the generation goes on
  });
  const names = ["content-type", "cache-control", "x-accel-buffering"];
  const headers = names.flatMap((name) => (response.headers.has(name) ? [[name, response.headers.get(name)!]] : []));
  return new Response(response.body, { status: response.status, headers: headers as [string, string][] });
}
