"""Fixtures every test may use. Servers listen on loopback, on free ports, and end with the test."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from broker import Broker, connect
from broker.embedded import EmbeddedRedis
from tests.support import Gateway, gateway


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def redis() -> AsyncGenerator[EmbeddedRedis, None]:
    """A server for the tests of a module; every key that they leave in it must have a lifetime."""
    async with EmbeddedRedis() as server:
        yield server
        if not server.exited():
            await no_key_without_lifetime(server.url)


async def no_key_without_lifetime(url: str) -> None:
    async with connect(url) as broker:
        redis = broker.store.redis
        names = await redis.execute("KEYS", "*")
        lifetimes = await redis.pipeline([("PTTL", name) for name in names])
    assert [name for name, ttl in zip(names, lifetimes, strict=True) if ttl == -1] == []


@pytest.fixture(scope="module")
async def broker(redis: EmbeddedRedis) -> AsyncGenerator[Broker, None]:
    async with connect(redis.url) as connected:
        yield connected


@pytest.fixture(scope="module")
async def api(redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    """A gateway process on it."""
    async with gateway(redis.url) as started:
        yield started
