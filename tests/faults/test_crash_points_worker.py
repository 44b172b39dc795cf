"""kill -9 at every step of a generation, right before Redis executes it and right after.

Whatever the step: one generation, one ending, the same for everybody, the right text, and no more upstream calls and
attempts than the step explains.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest

from broker import connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.settings.settings import SIMULATED_KEY
from tests.faults.scene import QUICK, Stored, ask, audience, queue_is_empty, stored
from tests.faults.subscriber import client
from tests.faults.tripwire import Matcher, Tripwire, When, command, script, transaction, tripwire
from tests.support import Gateway, Service, clients_by_last_command, gateway, service, wait_until


class Worker:
    """Behind a wire of its own. Who survives a case is the one that dies in the next: starting one takes a second."""

    def __init__(self, redis_url: str, upstream_url: str) -> None:
        self._redis_url = redis_url
        self._upstream_url = upstream_url
        self._stack = AsyncExitStack()
        self.wire = Tripwire("")
        self.process: Service | None = None

    async def start(self, **variables: str) -> Service:
        self.wire = await self._stack.enter_async_context(tripwire(self._redis_url))
        settings = {"OPENAI_BASE_URL": self._upstream_url, "OPENAI_API_KEY": SIMULATED_KEY, **QUICK, **variables}
        self.process = await self._stack.enter_async_context(service("worker", REDIS_URL=self.wire.url, **settings))
        await self.process.says("ready")
        return self.process

    async def running(self) -> Service:
        if self.process is None or self.process.process.returncode is not None:
            return await self.start(TOKENCAST_WORKER_DRAIN="0")
        return self.process

    async def listens(self) -> None:
        """Until it waits for the bell."""
        async with connect(self._redis_url) as broker:
            await wait_until(lambda: clients_by_last_command(broker.queue.redis, "blpop"))

    async def close(self) -> None:
        await self._stack.aclose()


@pytest.fixture(scope="module")
async def worker(redis: EmbeddedRedis, sim: str) -> AsyncGenerator[Worker, None]:
    worker = Worker(redis.url, sim)
    yield worker
    await worker.close()


@pytest.fixture(scope="module")
async def quick(redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    async with gateway(redis.url, **QUICK) as started:
        yield started


@dataclass(frozen=True)
class Point:
    """Where a worker dies, and what that costs."""

    matcher: Matcher
    when: When
    attempts: int = 1
    calls: tuple[int, ...] = (1,)
    nth: int = 1
    upstream: str = ""
    length: int = 40
    stopping: bool = False
    """Whether it was told to stop, and dies while it hands over."""
    lost: int | None = None
    by: signal.Signals = signal.SIGKILL

    @property
    def budget(self) -> int:
        return self.attempts - 1 if self.lost is None else self.lost


async def longest_hold(redis_url: str) -> int:
    """ms for which nobody else may take a ticket that a worker has taken: no longer than a lease."""
    async with connect(redis_url) as broker:
        execute = broker.queue.redis.execute
        return max([await execute("PTTL", name) for name in await execute("KEYS", "arq:in-progress:*")], default=0)


STALL = "fault=stall at=3 times=1"
AGAIN = {"attempts": 2, "calls": (2,)}
WORKER_POINTS = {
    "the bell rang": Point(command(b"BLPOP"), "after"),
    "it has the ticket": Point(transaction(b"PSETEX"), "after"),
    "before the claim": Point(script("claim"), "before"),
    "told to stop, it has the ticket": Point(transaction(b"PSETEX"), "after", by=signal.SIGTERM),
    "told to stop before the claim": Point(script("claim"), "before", by=signal.SIGTERM),
    "it has the claim": Point(script("claim"), "after", attempts=2),
    "before it removes the ticket": Point(transaction(b"ZREM"), "before", attempts=2, calls=(1, 2)),
    "the ticket is removed": Point(transaction(b"ZREM"), "after", attempts=2, calls=(1, 2)),
    "before the first append": Point(script("append"), "before", **AGAIN),
    "it has appended for the first time": Point(script("append"), "after", **AGAIN),
    "it has appended in the middle": Point(script("append"), "after", nth=3, length=200, **AGAIN),
    "it has renewed the lease": Point(script("touch"), "after", upstream=STALL, **AGAIN),
    "before the ending": Point(script("finish"), "before", **AGAIN),
    "it has written the ending": Point(script("finish"), "after"),
    "before it hands over": Point(script("release"), "before", upstream=STALL, stopping=True, **AGAIN),
    "it has handed over, without a ticket": Point(
        script("release"), "after", upstream=STALL, stopping=True, lost=0, **AGAIN
    ),
    "what it has handed over has a ticket": Point(
        script("enqueue"), "after", upstream=STALL, stopping=True, lost=0, **AGAIN
    ),
}


@pytest.mark.parametrize("point", WORKER_POINTS.values(), ids=WORKER_POINTS.keys())
async def test_a_worker_dies(
    redis: EmbeddedRedis, sim: str, quick: Gateway, worker: Worker, point: Point, request: pytest.FixtureRequest
) -> None:
    label = request.node.callspec.id.replace(" ", "-")
    doomed = await worker.running()
    await worker.listens()
    trap = worker.wire.trap(point.matcher, point.when, lambda: doomed.send(point.by), nth=point.nth)
    async with client() as http:
        said = await ask(quick, label, length=point.length, speed=200, more=point.upstream)
        async with audience(http, lambda: quick.url, said) as people:
            if point.stopping:
                await people.has_text()
                doomed.send(signal.SIGTERM)
            await doomed.wait()
            assert trap.sprung.is_set()
            assert await longest_hold(redis.url) <= 1000
            await worker.start(TOKENCAST_WORKER_DRAIN="0")
            assert await people.ending() == "completed"
            assert people.resets == point.attempts - 1
    found = await stored(redis.url, sim, said, label)
    assert found.calls in point.calls
    assert found == Stored("completed", point.attempts, point.budget, found.calls)
    assert (await quick.get(said.gid))["text"] == said.text
    await queue_is_empty(redis.url)
