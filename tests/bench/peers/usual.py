"""The usual implementation of a gateway: Starlette and sse-starlette, with one XREAD loop per subscriber.

`/s/<name>` follows the Redis stream `s:<name>`. Each entry has one field `d`, and the last one is `[DONE]`.
"""

from __future__ import annotations

import os
import resource
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import redis.asyncio as redis_asyncio
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from tests.support import Service, service

DONE = "[DONE]"
redis = redis_asyncio.Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"))


async def follow(request: Request) -> EventSourceResponse:
    key = f"s:{request.path_params['name']}"
    position = request.headers.get("last-event-id", "0")

    async def events() -> AsyncIterator[dict[str, str]]:
        last = position
        while True:
            for _, entries in await redis.xread({key: last}, count=100, block=15_000):
                for entry_id, fields in entries:
                    last, data = entry_id.decode(), fields[b"d"].decode()
                    yield {"id": last, "data": data}
                    if data == DONE:
                        return

    return EventSourceResponse(events())


def application() -> Starlette:
    """The application for uvicorn, in its own process. A subscriber needs two sockets: its own and one to Redis."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return Starlette(routes=[Route("/s/{name}", follow)])


@asynccontextmanager
async def usual_gateway(redis_url: str) -> AsyncGenerator[tuple[int, Service], None]:
    """Run the gateway. Yields its port and its process."""
    options = ("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--timeout-graceful-shutdown", "1")
    command = ("uvicorn", "tests.bench.peers.usual:application", "--factory", "--port", "0", *options)
    async with service(*command, REDIS_URL=redis_url) as process:
        yield int((await process.says(r"running on http://127\.0\.0\.1:(\d+)"))[1]), process
