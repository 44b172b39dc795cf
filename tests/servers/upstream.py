"""An upstream in the test's own process, which takes a limited number of calls at once and can fail in several ways.

It counts its calls itself: what it sees is what the limits of the queue are about.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import web


class CountingUpstream:
    """Answers each call with `length` tokens, `pace` seconds apart. The prompt of a call is its name."""

    def __init__(self, capacity: int = 1000, *, length: int = 3, pace: float = 0.0, retry_after: str = "1") -> None:
        self.capacity = capacity
        """Calls at once; more of them get 429 with `Retry-After`."""
        self.length, self.pace, self.retry_after = length, pace, retry_after
        self.failing: int | None = None
        """Status of every answer, while it is set."""
        self.hanging = False
        """Calls get no answer."""
        self.poisonous: set[str] = set()
        """Prompts whose calls get 500."""
        self.gate = asyncio.Event()
        """While it is not set, calls are accepted and get no token."""
        self.gate.set()
        self.answering = asyncio.Event()
        """While it is not set, calls get no response headers."""
        self.answering.set()
        self.calls: Counter[str] = Counter()
        """By prompt, all of them."""
        self.order: list[str] = []
        """Prompts of the accepted calls."""
        self.refused = self.in_flight = self.most = self.failed = 0
        self._port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    async def open(self) -> None:
        """Listen, at the same port as before."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]

    async def close(self) -> None:
        """Refuse connections and close the existing ones."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _models(self, _request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": []})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        prompt = (await request.json())["messages"][-1]["content"]
        self.calls[prompt] += 1
        if self.hanging:
            self.failed += 1
            await asyncio.Event().wait()
        status = 500 if prompt in self.poisonous else self.failing
        if status is not None:
            self.failed += 1
            return web.json_response({"error": {"message": "down"}}, status=status)
        if self.in_flight >= self.capacity:
            self.refused += 1
            error = {"error": {"message": "too many requests", "type": "rate_limit_error"}}
            return web.json_response(error, status=429, headers={"Retry-After": self.retry_after})
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        self.order.append(prompt)
        try:
            return await self._answer(request)
        finally:
            self.in_flight -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        await self.answering.wait()
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await self.gate.wait()
        for _ in range(self.length):
            await response.write(_chunk({"content": "a"}, None))
            if self.pace:
                await asyncio.sleep(self.pace)
        await response.write(_chunk({}, "stop") + b"data: [DONE]\n\n")
        return response


def _chunk(delta: dict[str, Any], reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


@asynccontextmanager
async def counting_upstream(
    capacity: int = 1000, *, length: int = 3, pace: float = 0.0, retry_after: str = "1"
) -> AsyncGenerator[CountingUpstream, None]:
    upstream = CountingUpstream(capacity, length=length, pace=pace, retry_after=retry_after)
    await upstream.open()
    try:
        yield upstream
    finally:
        await upstream.close()
