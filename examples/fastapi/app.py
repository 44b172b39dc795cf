"""A web application whose readers follow at the gateway: it enqueues a question and hands out a stream token."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated

import httpx2
import uvicorn
from fastapi import FastAPI, Header, HTTPException
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

TOKENCAST_URL = os.environ.get("TOKENCAST_URL", "http://127.0.0.1:8000")
KEY = os.environ.get("TOKENCAST_API_KEY", "unused")
MODEL = os.environ.get("MODEL", "gabforge-coder")

tokencast = httpx2.AsyncClient(base_url=TOKENCAST_URL, headers={"authorization": f"Bearer {KEY}"}, timeout=10)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
    async with tokencast:
        yield


app = FastAPI(lifespan=lifespan)


class Question(BaseModel):
    question: str


class Answer(BaseModel):
    id: str
    events_url: str
    expires_at: float


@app.post("/ask", status_code=202)
async def ask(question: Question, idempotency_key: Annotated[str | None, Header()] = None) -> Answer:
    headers = {"idempotency-key": idempotency_key} if idempotency_key else {}
    messages = [{"role": "user", "content": question.question}]
    response = await tokencast.post("/v1/generations", json={"model": MODEL, "messages": messages}, headers=headers)
    if response.is_error:
        raise HTTPException(response.status_code, response.json()["error"]["message"])
    return await token(response.json()["id"])


@app.post("/answers/{gid}/token")
async def token(gid: str) -> Answer:
    """Issue a token for ten minutes. The page asks for another one when its stream has ended with the token.

    Check here whether your user may read this answer.
    """
    response = await tokencast.post(f"/v1/generations/{gid}/token", json={"ttl_seconds": 600})
    if response.is_error:
        raise HTTPException(response.status_code, response.json()["error"]["message"])
    issued = response.json()
    return Answer(id=gid, events_url=TOKENCAST_URL + issued["events_url"], expires_at=issued["expires_at"])


PAGE = """<!doctype html><meta charset="utf-8"><title>Ask</title>
<form><input name="question" value="Explain the GIL in CPython." size="60"><button>Ask</button></form><pre></pre>
<script type="module">
const output = document.querySelector("pre");
const post = async (path, body) => {
  const headers = { "content-type": "application/json", "idempotency-key": crypto.randomUUID() };
  return (await fetch(path, { method: "POST", headers, body: JSON.stringify(body) })).json();
};

function follow({ id, events_url: url }, after = "") {
  const source = new EventSource(after ? `${url}&after=${after}` : url);
  source.addEventListener("chunk", ({ data, lastEventId }) => {
    after = lastEventId;
    for (const choice of JSON.parse(data).choices) output.append(choice.delta.content ?? "");
  });
  source.addEventListener("reset", () => output.replaceChildren());
  for (const ending of ["completed", "failed", "cancelled", "gone"]) {
    source.addEventListener(ending, () => source.close());
  }
  source.onerror = async () => { // it reconnects by itself, unless the token has expired
    if (source.readyState === EventSource.CLOSED) follow(await post(`/answers/${id}/token`), after);
  };
}

document.querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  output.textContent = "";
  follow(await post("/ask", { question: new FormData(event.target).get("question") }));
});
</script>
"""


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    return PAGE


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "9000")))
