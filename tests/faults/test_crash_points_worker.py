"""Kill a worker at every step of a generation, immediately before and after Redis executes the step.

After each of them there is one generation with one ending, which is the same for all subscribers, the right text, and
no more upstream calls and attempts than the step explains.
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
from tests.faults.tripwire import Command, Matcher, Tripwire, When, command, script, transaction, tripwire
from tests.support import Gateway, Service, clients_by_last_command, gateway, service, wait_until


class Worker:
    """A worker with a tripwire between it and Redis. One that survives a case is killed in the next: a start takes a
    second."""

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

    async def wait_for_bell(self) -> None:
        """Wait until the worker blocks on the bell."""
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
    """The point at which a worker dies, and the attempts and upstream calls that this costs."""

    matcher: Matcher
    when: When
    attempts: int = 1
    calls: tuple[int, ...] = (1,)
    nth: int = 1
    upstream: str = ""
    length: int = 40
    stopping: bool = False
    """Whether the worker was told to stop and dies during the hand-over."""
    lost: int | None = None
    by: signal.Signals = signal.SIGKILL

    @property
    def budget(self) -> int:
        return self.attempts - 1 if self.lost is None else self.lost


async def longest_ticket_hold(redis_url: str) -> int:
    """Longest time in ms for which a taken ticket is unavailable to other workers; at most a lease."""
    async with connect(redis_url) as broker:
        execute = broker.queue.redis.execute
        return max([await execute("PTTL", name) for name in await execute("KEYS", "arq:in-progress:*")], default=0)


def renewal(command: Command) -> bool:
    """Matches the renewal of at least one place."""
    return script("hold")(command) and len(command) > len(("EVALSHA", "sha", "0", "lease", "born"))


STALL = "fault=stall at=3 times=1"
SLOW = "delay=0.5"
REFUSED = "fault=503 times=1 retry_after=0.1"
AGAIN = {"attempts": 2, "calls": (2,)}
NOT_BEGUN = {"attempts": 1, "lost": 1}
"""The claim is lost, which counts as a crash, but readers have seen nothing of the attempt."""
WORKER_POINTS = {
    "after the bell rang": Point(command(b"BLPOP"), "after"),
    "before the pull": Point(script("pull"), "before"),
    "after the pull": Point(script("pull"), "after"),
    "after it took the ticket": Point(transaction(b"PSETEX"), "after"),
    "before the claim": Point(script("claim"), "before"),
    "told to stop after the pull": Point(script("pull"), "after", by=signal.SIGTERM),
    "told to stop after it took the ticket": Point(transaction(b"PSETEX"), "after", by=signal.SIGTERM),
    "told to stop before the claim": Point(script("claim"), "before", by=signal.SIGTERM),
    "after the claim": Point(script("claim"), "after", **NOT_BEGUN),
    "before it removes the ticket": Point(transaction(b"ZREM"), "before", upstream=SLOW, calls=(1, 2), **NOT_BEGUN),
    "after it removed the ticket": Point(transaction(b"ZREM"), "after", upstream=SLOW, calls=(1, 2), **NOT_BEGUN),
    "before the beginning": Point(script("begin"), "before", calls=(2,), **NOT_BEGUN),
    "after the beginning": Point(script("begin"), "after", **AGAIN),
    "after the upstream accepted the call": Point(script("begun"), "after", upstream=SLOW, calls=(2,), **NOT_BEGUN),
    "before the first append": Point(script("append"), "before", **AGAIN),
    "after the first append": Point(script("append"), "after", **AGAIN),
    "after an append in the middle": Point(script("append"), "after", nth=3, length=200, **AGAIN),
    "after it renewed the lease": Point(script("touch"), "after", upstream=STALL, **AGAIN),
    "after it renewed the place": Point(renewal, "after", upstream=STALL, **AGAIN),
    "before the ending": Point(script("finish"), "before", **AGAIN),
    "after the ending": Point(script("finish"), "after"),
    "before the place is freed": Point(script("done"), "before"),
    "after the place was freed": Point(script("done"), "after"),
    "before a refused call is reported": Point(script("done"), "before", upstream=REFUSED, calls=(2,), **NOT_BEGUN),
    "after a refused call was reported": Point(script("done"), "after", upstream=REFUSED, calls=(2,), **NOT_BEGUN),
    "before a refused generation waits": Point(script("defer"), "before", upstream=REFUSED, calls=(2,), **NOT_BEGUN),
    "after a refused generation waits, before the offer": Point(script("defer"), "after", upstream=REFUSED, calls=(2,)),
    "after a refused generation waits, after the offer": Point(script("offer"), "after", upstream=REFUSED, calls=(2,)),
    "before the hand-over": Point(script("release"), "before", upstream=STALL, stopping=True, **AGAIN),
    "after the hand-over, before the offer": Point(
        script("release"), "after", upstream=STALL, stopping=True, lost=0, **AGAIN
    ),
    "after the hand-over and the offer": Point(
        script("offer"), "after", upstream=STALL, stopping=True, lost=0, **AGAIN
    ),
}


@pytest.mark.parametrize("point", WORKER_POINTS.values(), ids=WORKER_POINTS.keys())
async def test_a_worker_dies_at_any_step(
    redis: EmbeddedRedis, sim: str, quick: Gateway, worker: Worker, point: Point, request: pytest.FixtureRequest
) -> None:
    label = request.node.callspec.id.replace(" ", "-")
    doomed = await worker.running()
    await worker.wait_for_bell()
    trap = worker.wire.trap(point.matcher, point.when, lambda: doomed.send(point.by), nth=point.nth)
    async with client() as http:
        said = await ask(quick, label, length=point.length, speed=200, more=point.upstream)
        async with audience(http, lambda: quick.url, said) as people:
            if point.stopping:
                await people.has_text()
                doomed.send(signal.SIGTERM)
            await doomed.wait()
            assert trap.sprung.is_set()
            assert await longest_ticket_hold(redis.url) <= 1000 * float(QUICK["TOKENCAST_LEASE"])
            await worker.start(TOKENCAST_WORKER_DRAIN="0")
            assert await people.ending() == "completed"
            assert people.resets == point.attempts - 1
    found = await stored(redis.url, sim, said, label)
    assert found.calls in point.calls
    assert found == Stored("completed", point.attempts, point.budget, found.calls)
    assert (await quick.get(said.gid))["text"] == said.text
    await queue_is_empty(redis.url)
