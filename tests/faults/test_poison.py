"""A poison generation: one that repeatedly crashes its worker."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack

from broker.dev.embedded_redis import EmbeddedRedis
from tests.faults.scene import QUICK, Stored, ask, audience, queue_is_empty, stored
from tests.faults.subscriber import client
from tests.support import Service, gateway, upstream_calls, wait_until, worker

FATAL = 240  # chunks of the poison generation after which its worker is killed
WORKERS = 2


async def test_a_poison_generation_fails_and_its_neighbours_complete(own_redis: EmbeddedRedis, sim: str) -> None:
    """It crashes three workers, which are replaced. All other generations that ran on them complete."""
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(gateway(own_redis.url, **QUICK))
        http = await stack.enter_async_context(client())
        workers: list[Service] = []

        async def start_worker() -> None:
            workers.append(await stack.enter_async_context(worker(own_redis.url, sim, **QUICK)))

        async def worker_of_attempt(gid: str, attempt: int) -> Service:
            line = f"{gid}: attempt {attempt}"
            return await wait_until(lambda: next((one for one in workers if line in one.output), None))

        await asyncio.gather(*(start_worker() for _ in range(WORKERS)))
        poison = await ask(api, "poison", length=100_000, speed=100)
        crowd = await stack.enter_async_context(audience(http, lambda: api.url, poison))
        neighbours = []
        for attempt in (1, 2, 3):
            await wait_until(lambda attempt=attempt: has_sent(sim, attempt, FATAL - 60))
            for n in range(4):
                label = f"neighbour-{attempt}-{n}"
                said = await ask(api, label, seed=n, length=60, speed=50)
                neighbours.append(await stack.enter_async_context(audience(http, lambda: api.url, said, native=1)))
            await wait_until(lambda attempt=attempt: has_sent(sim, attempt, FATAL))
            (await worker_of_attempt(poison.gid, attempt)).send(signal.SIGKILL)
            await start_worker()
        assert await crowd.ending() == "failed"
        assert {one.shown.error for one in crowd.native} == {"attempts_exhausted"}
        assert await stored(own_redis.url, sim, poison, "poison") == Stored("failed", attempts=3, budget=3, calls=3)
        for neighbour in neighbours:
            assert await neighbour.ending() == "completed"
        assert sum(neighbour.resets for neighbour in neighbours) > 0
        await queue_is_empty(own_redis.url)


async def has_sent(upstream: str, call: int, chunks: int) -> bool:
    calls = await upstream_calls(upstream, "poison")
    return len(calls) >= call and calls[call - 1]["chunks_sent"] >= chunks
