"""Recovery times after failures: `make recovery`.

Real processes with default settings, measured at a subscriber. The first row is determined by TOKENCAST_LEASE and the
reaper's interval, the others by the machine.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp

from broker.dev.embedded_redis import EmbeddedRedis
from tests.bench.report import Rows, report, row
from tests.faults.oracle import Said
from tests.faults.scene import ask
from tests.faults.subscriber import Subscriber, client
from tests.support import Frame, Gateway, Service, gateway, upstream_calls, upstream_sim, wait_until, worker

TIMEOUT = 60.0  # seconds for one event
Seconds = list[float]


class TimedSubscriber(Subscriber):
    """Records the time of each event, by the clock of the simulated upstream's journal."""

    def __init__(self, http: aiohttp.ClientSession, gateways: Callable[[], str], said: Said) -> None:
        super().__init__(http, gateways, said)
        self._seen: list[tuple[float, str, int]] = []
        self._received = asyncio.Event()

    def _take(self, frame: Frame) -> None:
        super()._take(frame)
        if frame.event:
            self._seen.append((time.time(), frame.event, self.connections))
            self._received.set()

    async def time_of(self, event: str, after: float, connection: int = 1) -> float:
        """Wait for the first event after that time, on that connection or a later one. Returns its time."""

        def found() -> float | None:
            matching = (at for at, kind, over in self._seen if kind == event and at > after and over >= connection)
            return next(matching, None)

        async with asyncio.timeout(TIMEOUT):
            while (at := found()) is None:
                self._received.clear()
                await self._received.wait()
        return at


@asynccontextmanager
async def watching(gateways: Callable[[], str], *generations: Said) -> AsyncGenerator[list[TimedSubscriber], None]:
    """One subscriber for each generation, which has received some of its text."""
    async with client() as http:
        watchers = [TimedSubscriber(http, gateways, said) for said in generations]
        tasks = [asyncio.create_task(watcher.run()) for watcher in watchers]
        try:
            for watcher in watchers:
                await watcher.time_of("chunk", after=0)
            yield watchers
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def runs(process: Service, said: Said) -> bool:
    return f"{said.gid}: attempt" in process.output


async def long_generations(api: Gateway, amount: int, label: str, more: str = "") -> list[Said]:
    return [await ask(api, label, seed=seed, length=100_000, speed=50, more=more) for seed in range(amount)]


async def killed_worker(doomed: int = 4, after: tuple[float, float] = (5, 10)) -> Seconds:
    """kill -9 of a worker → `reset` at the readers of its generations. `after`: minimum and maximum seconds before the
    kill; after five seconds its lease is as old as it can be."""
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(EmbeddedRedis())
        upstream = await stack.enter_async_context(upstream_sim())
        api = await stack.enter_async_context(gateway(redis.url))

        async def kill(process: Service) -> Seconds:
            await asyncio.sleep(random.uniform(*after))
            mine = [watcher for watcher in watchers if runs(process, watcher.shown.said)]
            process.send(signal.SIGKILL)
            killed = time.time()
            return [await watcher.time_of("reset", killed) - killed for watcher in mine]

        two = {"TOKENCAST_SLOTS": "2"}
        workers = [await stack.enter_async_context(worker(redis.url, upstream, **two)) for _ in range(doomed)]
        generations = await long_generations(api, 2 * doomed, "killed")
        watchers = await stack.enter_async_context(watching(lambda: api.url, *generations))
        await stack.enter_async_context(worker(redis.url, upstream))
        return [seconds for found in await asyncio.gather(*map(kill, workers)) for seconds in found]


async def stopped_worker() -> Seconds:
    """SIGTERM to a worker without a drain → `reset` at the readers of the generations that it hands over."""
    async with (
        EmbeddedRedis() as redis,
        upstream_sim() as upstream,
        gateway(redis.url) as api,
        worker(redis.url, upstream, TOKENCAST_WORKER_DRAIN="0") as stopping,
    ):
        generations = await long_generations(api, 10, "stopped")
        async with watching(lambda: api.url, *generations) as watchers, worker(redis.url, upstream):
            stopping.send(signal.SIGTERM)
            stopped = time.time()
            return [await watcher.time_of("reset", stopped) - stopped for watcher in watchers]


async def cancelled(*, silent: bool, times: int = 10) -> tuple[Seconds, Seconds]:
    """A cancel → its upstream call is closed; → its reader has `cancelled`."""
    async with (
        EmbeddedRedis() as redis,
        upstream_sim() as upstream,
        gateway(redis.url) as api,
        worker(redis.url, upstream),
    ):
        closed: Seconds = []
        received: Seconds = []
        for number in range(times):
            label = f"cancelled-{number}"
            generations = await long_generations(api, 1, label, "fault=stall at=3" if silent else "")
            async with watching(lambda: api.url, *generations) as (watcher,):
                await asyncio.sleep(random.uniform(0.2, 0.7))  # a random moment between two renewals of the lease
                asked = time.time()
                await api.http.post(f"/v1/generations/{watcher.shown.said.gid}/cancel")
                received.append(await watcher.time_of("cancelled", asked) - asked)
                closed.append(await ended_at(upstream, label) - asked)
        return closed, received


async def ended_at(upstream: str, label: str) -> float:
    async def when() -> float | None:
        (call,) = await upstream_calls(upstream, label)
        return call["ended_at"]

    return await wait_until(when)


async def cancelled_without_a_worker() -> Seconds:
    """A cancel of a dead worker's generation → its reader has `cancelled`."""
    async with (
        EmbeddedRedis() as redis,
        upstream_sim() as upstream,
        gateway(redis.url) as api,
        worker(redis.url, upstream) as dead,
        watching(lambda: api.url, *await long_generations(api, 10, "orphan")) as watchers,
    ):
        dead.send(signal.SIGKILL)
        await dead.wait()
        found: Seconds = []
        for watcher in watchers:
            asked = time.time()
            await api.http.post(f"/v1/generations/{watcher.shown.said.gid}/cancel")
            found.append(await watcher.time_of("cancelled", asked) - asked)
        return found


async def killed_gateway() -> Seconds:
    """kill -9 of a gateway → its subscribers have the next chunk from another one. They reconnect after 0.1 s."""
    async with (
        EmbeddedRedis() as redis,
        upstream_sim() as upstream,
        worker(redis.url, upstream),
        gateway(redis.url) as dying,
        gateway(redis.url) as other,
        watching(
            lambda: (dying if dying.process.process.returncode is None else other).url,
            *await long_generations(other, 10, "gateway"),
        ) as watchers,
    ):
        dying.process.send(signal.SIGKILL)
        killed = time.time()
        return [await watcher.time_of("chunk", killed, connection=2) - killed for watcher in watchers]


async def killed_redis(*, persistent: bool) -> Seconds:
    """kill -9 of Redis, and its immediate restart → the next chunk."""
    async with (
        EmbeddedRedis(appendonly=persistent) as redis,
        upstream_sim() as upstream,
        gateway(redis.url) as api,
        worker(redis.url, upstream),
        watching(lambda: api.url, *await long_generations(api, 10, "redis")) as watchers,
    ):
        killed = time.time()
        await redis.restart()
        back = time.time()
        return [await watcher.time_of("chunk", back) - killed for watcher in watchers]


async def measure(runs: int) -> Rows:
    found: dict[str, Seconds] = {}

    async def record(name: str, measurement: Awaitable[Seconds]) -> None:
        found.setdefault(name, []).extend(await measurement)

    for _ in range(runs):
        await record("worker killed: reset received, ms", killed_worker())
        await record("worker stopped, hand-over: reset received, ms", stopped_worker())
        for silent in (False, True):
            closed, received = await cancelled(silent=silent)
            upstream = "silent" if silent else "streaming"
            found.setdefault(f"cancel: {upstream} upstream closed, ms", []).extend(closed)
            found.setdefault("cancel: cancelled received, ms", []).extend(received)
        await record("cancel, no worker: cancelled received, ms", cancelled_without_a_worker())
        await record("gateway killed: continues at another, ms", killed_gateway())
        await record("Redis killed, back with its data: continues, ms", killed_redis(persistent=True))
        await record("Redis killed, back empty: continues, ms", killed_redis(persistent=False))
    return {name: row([1000 * one for one in seconds], (50, 90, 99)) for name, seconds in found.items()}


if __name__ == "__main__":
    report(measure, "Recovery times after failures.")
