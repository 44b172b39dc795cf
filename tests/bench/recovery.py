"""How long it is felt that something failed: `make recovery`.

Real processes at their default settings; what counts is what a subscriber sees. The first line is TOKENCAST_LEASE
and the reaper's pause, chosen so; the others are what the machine takes.
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

PATIENCE = 60.0  # seconds for one answer
Seconds = list[float]


class Watcher(Subscriber):
    """Remembers when what came; by the clock that the simulated upstream's journal has."""

    def __init__(self, http: aiohttp.ClientSession, gateways: Callable[[], str], said: Said) -> None:
        super().__init__(http, gateways, said)
        self._seen: list[tuple[float, str, int]] = []
        self._news = asyncio.Event()

    def _take(self, frame: Frame) -> None:
        super()._take(frame)
        if frame.event:
            self._seen.append((time.time(), frame.event, self.connections))
            self._news.set()

    async def sees(self, event: str, after: float, connection: int = 1) -> float:
        """When the first one came after that moment, over that connection or a later one; waits for it."""

        def found() -> float | None:
            rightly = (at for at, kind, over in self._seen if kind == event and at > after and over >= connection)
            return next(rightly, None)

        async with asyncio.timeout(PATIENCE):
            while (at := found()) is None:
                self._news.clear()
                await self._news.wait()
        return at


@asynccontextmanager
async def watching(gateways: Callable[[], str], *generations: Said) -> AsyncGenerator[list[Watcher], None]:
    """A subscriber for each, who has some of its text."""
    async with client() as http:
        watchers = [Watcher(http, gateways, said) for said in generations]
        tasks = [asyncio.create_task(watcher.run()) for watcher in watchers]
        try:
            for watcher in watchers:
                await watcher.sees("chunk", after=0)
            yield watchers
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def runs(process: Service, said: Said) -> bool:
    return f"{said.gid}: attempt" in process.output


async def long_ones(api: Gateway, amount: int, label: str, more: str = "") -> list[Said]:
    return [await ask(api, label, seed=seed, length=100_000, speed=50, more=more) for seed in range(amount)]


async def killed_worker(doomed: int = 4, after: tuple[float, float] = (5, 10)) -> Seconds:
    """kill -9 of a worker → `reset` at the readers of what it ran. `after` so many seconds, least and most: from the
    fifth on its lease is as old as it may be."""
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(EmbeddedRedis())
        upstream = await stack.enter_async_context(upstream_sim())
        api = await stack.enter_async_context(gateway(redis.url))

        async def dies(process: Service) -> Seconds:
            await asyncio.sleep(random.uniform(*after))
            mine = [watcher for watcher in watchers if runs(process, watcher.shown.said)]
            process.send(signal.SIGKILL)
            killed = time.time()
            return [await watcher.sees("reset", killed) - killed for watcher in mine]

        two = {"TOKENCAST_SLOTS": "2"}
        workers = [await stack.enter_async_context(worker(redis.url, upstream, **two)) for _ in range(doomed)]
        generations = await long_ones(api, 2 * doomed, "killed")
        watchers = await stack.enter_async_context(watching(lambda: api.url, *generations))
        await stack.enter_async_context(worker(redis.url, upstream))
        return [seconds for found in await asyncio.gather(*map(dies, workers)) for seconds in found]


async def stopped_worker() -> Seconds:
    """SIGTERM to a worker that waits for nothing → `reset` at the readers of what it hands over."""
    async with (
        EmbeddedRedis() as redis,
        upstream_sim() as upstream,
        gateway(redis.url) as api,
        worker(redis.url, upstream, TOKENCAST_WORKER_DRAIN="0") as stopping,
    ):
        generations = await long_ones(api, 10, "stopped")
        async with watching(lambda: api.url, *generations) as watchers, worker(redis.url, upstream):
            stopping.send(signal.SIGTERM)
            told = time.time()
            return [await watcher.sees("reset", told) - told for watcher in watchers]


async def cancelled(*, silent: bool, times: int = 10) -> tuple[Seconds, Seconds]:
    """A cancel → its upstream call is let go; → its reader has `cancelled`."""
    async with (
        EmbeddedRedis() as redis,
        upstream_sim() as upstream,
        gateway(redis.url) as api,
        worker(redis.url, upstream),
    ):
        let_go: Seconds = []
        told: Seconds = []
        for number in range(times):
            label = f"cancelled-{number}"
            generations = await long_ones(api, 1, label, "fault=stall at=3" if silent else "")
            async with watching(lambda: api.url, *generations) as (watcher,):
                await asyncio.sleep(random.uniform(0.2, 0.7))  # any moment of the lease's renewal
                asked = time.time()
                await api.http.post(f"/v1/generations/{watcher.shown.said.gid}/cancel")
                told.append(await watcher.sees("cancelled", asked) - asked)
                let_go.append(await ended_at(upstream, label) - asked)
        return let_go, told


async def ended_at(upstream: str, label: str) -> float:
    async def when() -> float | None:
        (call,) = await upstream_calls(upstream, label)
        return call["ended_at"]

    return await wait_until(when)


async def cancelled_without_a_worker() -> Seconds:
    """A cancel of what a dead worker ran → its reader has `cancelled`."""
    async with (
        EmbeddedRedis() as redis,
        upstream_sim() as upstream,
        gateway(redis.url) as api,
        worker(redis.url, upstream) as dead,
        watching(lambda: api.url, *await long_ones(api, 10, "orphan")) as watchers,
    ):
        dead.send(signal.SIGKILL)
        await dead.wait()
        found: Seconds = []
        for watcher in watchers:
            asked = time.time()
            await api.http.post(f"/v1/generations/{watcher.shown.said.gid}/cancel")
            found.append(await watcher.sees("cancelled", asked) - asked)
        return found


async def killed_gateway() -> Seconds:
    """kill -9 of a gateway → its subscribers have the next chunk from another one. They try again after 0.1 s."""
    async with (
        EmbeddedRedis() as redis,
        upstream_sim() as upstream,
        worker(redis.url, upstream),
        gateway(redis.url) as dying,
        gateway(redis.url) as other,
        watching(
            lambda: (dying if dying.process.process.returncode is None else other).url,
            *await long_ones(other, 10, "gateway"),
        ) as watchers,
    ):
        dying.process.send(signal.SIGKILL)
        killed = time.time()
        return [await watcher.sees("chunk", killed, connection=2) - killed for watcher in watchers]


async def killed_redis(*, keeps: bool) -> Seconds:
    """kill -9 of Redis, and at once its start → the next chunk."""
    async with (
        EmbeddedRedis(appendonly=keeps) as redis,
        upstream_sim() as upstream,
        gateway(redis.url) as api,
        worker(redis.url, upstream),
        watching(lambda: api.url, *await long_ones(api, 10, "redis")) as watchers,
    ):
        killed = time.time()
        await redis.restart()
        back = time.time()
        return [await watcher.sees("chunk", back) - killed for watcher in watchers]


async def measure(runs: int) -> Rows:
    found: dict[str, Seconds] = {}

    async def answer(name: str, question: Awaitable[Seconds]) -> None:
        found.setdefault(name, []).extend(await question)

    for _ in range(runs):
        await answer("worker killed: reset seen, ms", killed_worker())
        await answer("worker stopped, hands over: reset seen, ms", stopped_worker())
        for silent in (False, True):
            let_go, told = await cancelled(silent=silent)
            upstream = "silent" if silent else "streaming"
            found.setdefault(f"cancel: {upstream} upstream let go, ms", []).extend(let_go)
            found.setdefault("cancel: cancelled seen, ms", []).extend(told)
        await answer("cancel, no worker: cancelled seen, ms", cancelled_without_a_worker())
        await answer("gateway killed: goes on at another, ms", killed_gateway())
        await answer("Redis killed, back with its file: goes on, ms", killed_redis(keeps=True))
        await answer("Redis killed, back empty: goes on, ms", killed_redis(keeps=False))
    return {name: row([1000 * one for one in seconds], (50, 90, 99)) for name, seconds in found.items()}


if __name__ == "__main__":
    report(measure, "How long it is felt that something failed.")
