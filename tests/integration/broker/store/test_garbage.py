"""What a connection, a question or a generation took is free when it is over. Left to the collector, which comes
rarely, those of half an hour were thousands."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
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
from broker.settings.settings import SIMULATED_KEY, Settings
from tests.support import Writer, beside, gather, request_body, wait_until
from worker.appender import Appender
from worker.attempt import Attempt, AttemptEnded, Ending
from worker.claims import Claim, claim
from worker.generate import GenerationRunner
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


def left(*kinds: type) -> list[Any]:
    return [each for each in gc.get_objects() if isinstance(each, kinds)]


def left_beside(known: list[Any], *kinds: type) -> list[Any]:
    """But for what was there before: a test that ran earlier in this process may hold some."""
    ids = set(map(id, known))
    return [each for each in left(*kinds) if id(each) not in ids]


@asynccontextmanager
async def serving(broker: Broker, settings: Settings) -> AsyncGenerator[str]:
    """A gateway in this process; its address."""
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


@pytest.mark.parametrize("how", ["to the end", "leaves", "keeps alive"])
async def test_a_connection_that_is_over_waits_for_no_collector(redis: EmbeddedRedis, how: str) -> None:
    settings = Settings(REDIS_URL=redis.url, PORT="0")  # type: ignore[call-arg]
    async with connect(settings=settings) as broker, serving(broker, settings) as url:
        writer = await Writer(broker.store.redis, (await broker.enqueue(request_body())).id).claim()
        await writer.append("word")
        path = f"/v1/generations/{writer.gid}/events"
        with no_collector():
            async with httpx2.AsyncClient(base_url=url) as http:
                if how == "keeps alive":
                    for _ in range(3):
                        assert (await http.get(f"/v1/generations/{writer.gid}")).status_code == 200
                elif how == "leaves":
                    async with http.stream("GET", path) as response:
                        await anext(response.aiter_raw())
                else:
                    reading = asyncio.create_task(http.get(path))
                    await wait_until(lambda: broker.hub.subscribers == 1)
                    await writer.finish()
                    (response,) = await gather(reading)
                    assert b"event: completed" in response.content
            await wait_until(lambda: not left(HttpProtocol))


async def test_a_question_that_failed_waits_for_no_collector() -> None:
    async def ask(gid: str) -> None:
        raise GenerationNotFound(gid)

    asked = SingleFlight(ask)
    with no_collector():
        for _ in range(3):
            with pytest.raises(GenerationNotFound):
                await asked.call("gen_x")
        await wait_until(lambda: not left(GenerationNotFound))


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
async def test_a_generation_that_is_over_waits_for_no_collector(
    redis: EmbeddedRedis, sim: str, monkeypatch: pytest.MonkeyPatch, directive: str, status: str
) -> None:
    monkeypatch.setattr("worker.ended_attempts.RETENTION", 0.1)
    kinds = (Attempt, Claim, UpstreamStream, UpstreamError, AttemptEnded)
    gc.collect()
    known = left(*kinds)
    mute = directive in ("fault=stall", "fault=silent")  # only these wait for a timeout; the others must not meet one
    settings = Settings(  # type: ignore[call-arg]
        REDIS_URL=redis.url,
        OPENAI_BASE_URL=sim,
        OPENAI_API_KEY=SIMULATED_KEY,
        first_token_timeout=0.3 if mute else 60,
        idle_timeout=0.3 if mute else 60,
        retry_budget=0.1,
        max_output=100_000,
    )
    appender = Appender(settings)
    async with connect(settings=settings) as broker, Upstreams(settings) as upstreams, beside(appender.run()):
        await appender.ready()
        generator = GenerationRunner(broker.store.redis, appender, upstreams, settings)
        with no_collector():
            gid = (await broker.enqueue(request_body(f"[[sim {directive}]]", model="sim"))).id
            claimed = await claim(broker.store.redis, gid, settings)
            assert isinstance(claimed, Claim)
            running = asyncio.create_task(generator.run(claimed))
            del claimed
            if status == "cancelled":
                await wait_until(lambda: any(attempt.published for attempt in left_beside(known, Attempt)))
                await broker.cancel(gid)
            await gather(running)
            del running
            assert (await broker.get(gid)).status == status
            await wait_until(lambda: not left_beside(known, *kinds))


async def test_an_ending_that_is_refused_waits_for_no_collector(broker: Broker) -> None:
    gid = (await broker.enqueue(request_body())).id
    claimed = await claim(broker.store.redis, gid, broker.settings)
    assert isinstance(claimed, Claim)
    gc.collect()
    known = left(Attempt)
    with no_collector():
        attempt = Attempt(claimed, lambda attempt: attempt.abort("FENCED"))
        with pytest.raises(AttemptEnded):
            await attempt.finish(Ending(b"completed", "completed", b"{}", "stop", b"", b"", b"[]"))
        del attempt
        await wait_until(lambda: not left_beside(known, Attempt))
