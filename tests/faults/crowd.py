"""Helpers of the queue's tests: generations on an upstream that counts its calls."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.generation import Generation
from broker.settings.settings import Settings
from broker.store import keys
from tests.servers.upstream import CountingUpstream
from tests.support import gather, request_body, wait_until


def body(prompt: str, model: str = "m", **options: Any) -> dict[str, Any]:
    """A request body. `options`: fields of its `tokencast` object."""
    return request_body(prompt, model=model, **({"tokencast": options} if options else {}))


async def ask_many(
    broker: Broker, count: int, prefix: str = "g", *, tenant: str = "default", **options: Any
) -> list[str]:
    """Create generations one after the other, so that their order is known; return their ids."""
    return [(await broker.enqueue(body(f"{prefix}{n}", **options), tenant=tenant)).id for n in range(count)]


async def all_ended(broker: Broker, gids: list[str], tenant: str = "default") -> list[Generation]:
    """Wait for the end of generations."""
    return await gather(*(broker.wait(gid, tenant=tenant) for gid in gids))


def routes(**upstreams: tuple[CountingUpstream, str]) -> str:
    """TOKENCAST_UPSTREAMS of upstreams by name, each with the model that it serves."""
    entries = [
        {"name": name, "base_url": upstream.url, "api_key_env": None, "models": [model]}
        for name, (upstream, model) in upstreams.items()
    ]
    return json.dumps(entries)


@asynccontextmanager
async def split(queue: EmbeddedRedis, logs: EmbeddedRedis, **settings: Any) -> AsyncGenerator[Broker, None]:
    """A broker with a server of its own for the queue."""
    given = Settings(REDIS_URL=queue.url, streams_url=logs.url, **settings)  # pyright: ignore[reportCallIssue]
    async with connect(settings=given) as broker:
        yield broker


async def state_of(broker: Broker, resource: str = "default") -> dict[str, str]:
    """The state of an upstream in the queue."""
    flat = await broker.queue.redis.execute("HGETALL", keys.upstream(resource))
    return {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}


async def places_are_free(broker: Broker, resource: str = "default") -> None:
    """Wait until no call has a place at an upstream: none has leaked."""

    async def free() -> bool:
        seconds, _ = await broker.queue.redis.execute("TIME")
        return await broker.queue.redis.execute("ZCOUNT", keys.places(resource), int(seconds) * 1000, "+inf") == 0

    await wait_until(free, "all places are free")


async def circuit_is_open(broker: Broker) -> None:
    """Wait until the circuit of an upstream is open and no call of it is under way."""

    async def is_open() -> bool:
        return (await state_of(broker)).get("circuit") == "open"

    await wait_until(is_open)
    await places_are_free(broker)


async def is_refused(upstream: CountingUpstream, times: int) -> None:
    await wait_until(lambda: upstream.refused >= times)
