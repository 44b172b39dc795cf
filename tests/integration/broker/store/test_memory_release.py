"""The memory of a connection, a call or a generation is freed at its end, without the garbage collector. The collector
runs rarely: the garbage of half an hour was thousands of objects."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from api.app import create_app
from api.server.protocol import HttpProtocol
from api.server.server import Server, config_for, listen
from broker import Broker, connect
from broker.concurrency.single_flight import SingleFlight
from broker.dev.embedded_redis import EmbeddedRedis
from broker.errors import GenerationNotFound
from broker.queue.quotas import TenantLimits
from broker.settings.settings import SIMULATED_KEY, Settings
from tests.support import Writer, gather, in_background, request_body, wait_until
from worker.appender import Appender
from worker.attempt import Attempt, AttemptEnded, Ending
from worker.claims import Claim, claim
from worker.generate import GenerationRunner
from worker.hand_back import HandBack
from worker.places import Places
from worker.upstream.errors import UpstreamError
from worker.upstream.stream import Upstreams, UpstreamStream


@contextmanager
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def alive(*kinds: type) -> list[Any]:
    return [each for each in gc.get_objects() if isinstance(each, kinds)]


def alive_except(known: list[Any], *kinds: type) -> list[Any]:
    """Without the objects that existed before: an earlier test in this process may hold some."""
    ids = set(map(id, known))
    return [each for each in alive(*kinds) if id(each) not in ids]


@asynccontextmanager
async def serving(broker: Broker, settings: Settings) -> AsyncGenerator[str]:
    """A gateway in this process. Yields its URL."""
    sock = listen(settings)

    app = create_app(broker)

    async def drain() -> None:
        await app.state.connections.drain(0)

    server = Server(config_for(app, settings), drain)
    task = asyncio.create_task(server.serve(sockets=[sock]))
    await wait_until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


@pytest.mark.parametrize("how", ["reads to the end", "disconnects", "keep-alive"])
async def test_a_closed_connection_is_freed_immediately(redis: EmbeddedRedis, how: str) -> None:
    settings = Settings(REDIS_URL=redis.url, PORT="0")  # type: ignore[call-arg]
    async with connect(settings=settings) as broker, serving(broker, settings) as url:
        writer = await Writer(broker.store.redis, (await broker.enqueue(request_body())).id).claim()
        await writer.append("word")
        path = f"/v1/generations/{writer.gid}/events"
        with no_collector():
            async with httpx2.AsyncClient(base_url=url) as http:
                if how == "keep-alive":
                    for _ in range(3):
                        assert (await http.get(f"/v1/generations/{writer.gid}")).status_code == 200
                elif how == "disconnects":
                    async with http.stream("GET", path) as response:
                        await anext(response.aiter_raw())
                else:
                    reading = asyncio.create_task(http.get(path))
                    await wait_until(lambda: broker.hub.subscribers == 1)
                    await writer.finish()
                    (response,) = await gather(reading)
                    assert b"event: completed" in response.content
            await wait_until(lambda: not alive(HttpProtocol))


async def test_a_failed_call_is_freed_immediately() -> None:
    async def ask(gid: str) -> None:
        raise GenerationNotFound(gid)

    flight = SingleFlight(ask)
    with no_collector():
        for _ in range(3):
            with pytest.raises(GenerationNotFound):
                await flight.call("gen_x")
        await wait_until(lambda: not alive(GenerationNotFound))


@pytest.mark.parametrize(
    ("directive", "status"),
    [
        ("length=3", "completed"),
        ("fault=truncate", "failed"),
        ("fault=bad-json", "failed"),
        ("fault=rst", "failed"),
        ("fault=400", "failed"),
        ("fault=html", "failed"),
        ("fault=stall", "failed"),
        ("fault=silent", "failed"),
        ("length=1000000 speed=0 size=1000", "failed"),
        ("length=100000", "cancelled"),
    ],
)
async def test_an_ended_generation_is_freed_immediately(
    redis: EmbeddedRedis, sim: str, monkeypatch: pytest.MonkeyPatch, directive: str, status: str
) -> None:
    monkeypatch.setattr("worker.ended_attempts.RETENTION", 0.1)
    kinds = (Attempt, Claim, UpstreamStream, UpstreamError, AttemptEnded)
    gc.collect()
    known = alive(*kinds)
    mute = directive in ("fault=stall", "fault=silent")  # only these wait for a timeout; the others must not reach one
    settings = Settings(  # type: ignore[call-arg]
        REDIS_URL=redis.url,
        OPENAI_BASE_URL=sim,
        OPENAI_API_KEY=SIMULATED_KEY,
        first_token_timeout=0.3 if mute else 60,
        idle_timeout=0.3 if mute else 60,
        max_output=100_000,
    )
    appender = Appender(settings)
    async with connect(settings=settings) as broker, Upstreams(settings) as upstreams, in_background(appender.run()):
        await appender.ready()
        store = broker.store.redis
        places = Places(store, TenantLimits(), "worker")
        hand_back = HandBack(store, broker.queue, places)
        generator = GenerationRunner(store, appender, upstreams, places, hand_back, settings)
        with no_collector():
            gid = (await broker.enqueue(request_body(f"[[sim {directive}]]", model="sim"))).id
            claimed = await claim(store, gid, settings, "default")
            assert isinstance(claimed, Claim)
            claimed = replace(claimed, meta={**claimed.meta, b"qd": b"1"})  # it fails instead of waiting
            running = asyncio.create_task(generator.run(claimed))
            del claimed
            if status == "cancelled":
                await wait_until(lambda: any(attempt.published for attempt in alive_except(known, Attempt)))
                await broker.cancel(gid)
            await gather(running)
            del running
            assert (await broker.get(gid)).status == status
            await wait_until(lambda: not alive_except(known, *kinds))


async def test_a_refused_ending_is_freed_immediately(broker: Broker) -> None:
    gid = (await broker.enqueue(request_body())).id
    claimed = await claim(broker.store.redis, gid, broker.settings, "default")
    assert isinstance(claimed, Claim)
    gc.collect()
    known = alive(Attempt)
    with no_collector():
        attempt = Attempt(claimed, lambda attempt: attempt.abort("FENCED"))
        with pytest.raises(AttemptEnded):
            await attempt.finish(Ending(b"completed", "completed", b"{}", "stop", b"", b"", b"[]"))
        del attempt
        await wait_until(lambda: not alive_except(known, Attempt))
