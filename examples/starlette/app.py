"""A web application in front of Tokencast. It knows its users and has the gateway's key; readers see only this."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

TOKENCAST_URL = os.environ.get("TOKENCAST_URL", "http://127.0.0.1:8000")
KEY = os.environ.get("TOKENCAST_API_KEY", "unused")
MODEL = os.environ.get("MODEL", "gabforge-coder")
PASSED_ON = ("content-type", "cache-control", "x-accel-buffering", "retry-after")

# A stream is silent between two heartbeats: no timeout for reading.
tokencast = httpx2.AsyncClient(
    base_url=TOKENCAST_URL,
    headers={"authorization": f"Bearer {KEY}"},
    timeout=httpx2.Timeout(10, read=None),
)


def user_of(request: Request) -> str:
    """Return the name of the user. Replace this with your sessions."""
    return request.cookies.get("user", "anonymous")


async def ask(request: Request) -> Response:
    """Enqueue a question. The page sends an Idempotency-Key, so that a repeated request is not a second question."""
    question = (await request.json())["question"]
    headers = {"idempotency-key": key} if (key := request.headers.get("idempotency-key")) else {}
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": question}],
        "metadata": {"user": user_of(request)},
    }
    response = await tokencast.post("/v1/generations", json=body, headers=headers)
    if response.is_error:
        return JSONResponse(response.json(), response.status_code)
    return JSONResponse({"id": response.json()["id"]}, 202)


async def events(request: Request) -> Response:
    """Pass the events of an answer on, byte by byte. A reader that comes back resumes, by its Last-Event-ID."""
    gid = request.path_params["id"]
    answer = await tokencast.get(f"/v1/generations/{gid}")
    if answer.is_error or answer.json()["metadata"].get("user") != user_of(request):
        return JSONResponse({"error": "There is no such answer."}, 404)
    headers = {"accept": "text/event-stream"}
    if last := request.headers.get("last-event-id"):
        headers["last-event-id"] = last
    upstream = await tokencast.send(
        tokencast.build_request("GET", f"/v1/generations/{gid}/events", headers=headers), stream=True
    )
    return StreamingResponse(
        upstream.aiter_raw(),
        upstream.status_code,  # 204: it has ended, and the EventSource stops
        {name: upstream.headers[name] for name in PASSED_ON if name in upstream.headers},
        background=BackgroundTask(upstream.aclose),
    )


PAGE = """<!doctype html><meta charset="utf-8"><title>Ask</title>
<form><input name="question" value="Explain the GIL in CPython." size="60"><button>Ask</button></form><pre></pre>
<script type="module">
const output = document.querySelector("pre");
document.querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  output.textContent = "";
  const question = new FormData(event.target).get("question");
  const headers = { "content-type": "application/json", "idempotency-key": crypto.randomUUID() };
  const answer = await fetch("/ask", { method: "POST", headers, body: JSON.stringify({ question }) });
  const { id } = await answer.json();
  const source = new EventSource(`/answers/${id}/events`); // reconnects by itself, and misses nothing
  source.addEventListener("chunk", ({ data }) => {
    for (const choice of JSON.parse(data).choices) output.append(choice.delta.content ?? "");
  });
  source.addEventListener("reset", () => output.replaceChildren());
  for (const ending of ["completed", "failed", "cancelled", "gone"]) {
    source.addEventListener(ending, () => source.close());
  }
});
</script>
"""


async def page(_: Request) -> Response:
    return HTMLResponse(PAGE)


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncGenerator[None, None]:
    async with tokencast:
        yield


app = Starlette(
    routes=[
        Route("/", page),
        Route("/ask", ask, methods=["POST"]),
        Route("/answers/{id}/events", events),
    ],
    lifespan=lifespan,
)

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "9000")))
