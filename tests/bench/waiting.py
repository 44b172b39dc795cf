"""The queue with few and with many waiting generations: the load W11."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.ids import SHARDS
from broker.settings.settings import Settings
from broker.store import keys
from tests.bench.systems import cpu_seconds
from tests.bench.table import Row, Target
from tests.servers.upstream import counting_upstream
from tests.support import request_body, wait_until, worker

FEW, MANY, QUICK = 100, 100_000, 10_000
AT_ONCE = 64  # creations under way
PICKED = 100  # generations whose pick-up is measured
IDLE = 5.0  # seconds


async def waiting(quick: bool, runs: int) -> list[Row]:
    """W11: generations that wait for a paused upstream, and others that another upstream takes at once. With two
    workers. Each figure of many waiting ones should be that of few."""
    table: list[Row] = []
    for count in (FEW, QUICK if quick else MANY):
        load = f"W11 · {count:,} waiting"
        rate = Row(load, "enqueued/s")
        picked = Row(load, "pick-up p50, ms")
        idle = Row(load, "Redis CPU while idle, %", (Target(2, True),))
        size = Row(load, "bytes of Redis per waiting generation")
        table += [rate, picked, idle, size]
        for _ in range(runs):
            async with _system() as (broker, redis):
                before = await _memory(broker)
                rate.add("tokencast", await _enqueued(broker, count))
                size.add("tokencast", (await _memory(broker) - before) / count)
                await wait_until(lambda broker=broker: _is_quiet(broker))
                idle.add("tokencast", await _idle_cpu(redis))
                picked.add("tokencast", await _picked_up(broker))
    return table


@asynccontextmanager
async def _system() -> AsyncGenerator[tuple[Broker, EmbeddedRedis]]:
    async with EmbeddedRedis() as redis, counting_upstream(length=1) as upstream:
        entries = [
            {"name": name, "base_url": upstream.url, "api_key_env": None, "models": [name]}
            for name in ("paused", "open")
        ]
        routes = str(entries).replace("'", '"').replace("None", "null")
        settings = Settings(REDIS_URL=redis.url, upstreams=routes)  # pyright: ignore[reportCallIssue, reportArgumentType]
        async with (
            connect(settings=settings) as broker,
            worker(redis.url, upstream.url, TOKENCAST_UPSTREAMS=routes),
            worker(redis.url, upstream.url, TOKENCAST_UPSTREAMS=routes),
        ):
            pause = [("HSET", keys.PAUSED, "u:paused", 1), ("EXPIRE", keys.PAUSED, 86_400)]
            await broker.queue.redis.pipeline(pause)
            yield broker, redis


async def _enqueued(broker: Broker, count: int) -> float:
    """Create waiting generations; return how many a second."""
    body = request_body("x" * 400, model="paused")

    async def some(number: int) -> None:
        for _ in range(number):
            await broker.enqueue(body)

    started = time.perf_counter()
    shares = [count // AT_ONCE + (n < count % AT_ONCE) for n in range(AT_ONCE)]
    await asyncio.gather(*map(some, shares))
    return count / (time.perf_counter() - started)


async def _memory(broker: Broker) -> int:
    lines = (await broker.store.redis.info("memory", "")).decode().splitlines()
    return int(next(line for line in lines if line.startswith("used_memory:")).split(":")[1])


async def _is_quiet(broker: Broker) -> bool:
    """Whether the reapers have looked at all generations: soon after the creation, then each ten minutes."""
    soon = [("ZRANGE", keys.live(shard), 0, 0, "WITHSCORES") for shard in SHARDS]
    heads = await broker.store.redis.pipeline(soon)
    seconds, _ = await broker.queue.redis.execute("TIME")
    return all(float(head[1]) > (int(seconds) + IDLE + 5) * 1000 for head in heads if head)


async def _idle_cpu(redis: EmbeddedRedis) -> float:
    """Return the share of a core, in per cent."""
    before = cpu_seconds(redis.pid)
    await asyncio.sleep(IDLE)
    return (cpu_seconds(redis.pid) - before) / IDLE * 100


async def _picked_up(broker: Broker) -> float:
    """Return the median time from the creation to the claim, in ms, by Redis's clock."""
    took: list[float] = []
    for number in range(PICKED):
        gid = (await broker.enqueue(request_body(f"now {number}", model="open"))).id

        async def claimed(gid: str = gid) -> int | None:
            attempt = await broker.store.redis.execute("HGET", keys.meta(gid), "na")
            return int(attempt or 0) >> 10

        at = await wait_until(claimed)
        took.append(at - int(await broker.store.redis.execute("HGET", keys.meta(gid), "ca")))
    return statistics.median(took)
