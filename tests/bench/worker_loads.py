"""The overhead of the broker between client and upstream: the loads W7 to W9."""

from __future__ import annotations

import statistics
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from tests.bench.latency import first_chunk, stream_lags
from tests.bench.peers.usual_worker import UsualWorker
from tests.bench.posting import Poster
from tests.bench.systems import cpu_seconds, tokencast
from tests.bench.table import Row, Target
from tests.support import Gateway, gateway, gather, request_body, upstream_sim, wait_until, worker

Rows = list[Row]


async def ingest(quick: bool, runs: int) -> Rows:
    """W7: an upstream that sends as fast as possible. The peer is a loop over the SDK's objects with one XADD each."""
    table: Rows = []
    async with (
        EmbeddedRedis() as redis,
        connect(redis.url) as broker,
        upstream_sim() as upstream,
        worker(redis.url, upstream) as process,
    ):
        for count, chunks in ((1, 20_000), (100, 1000 if quick else 3000)):
            load = f"W7 · {count} at once"
            targets = (*((Target(40_000),) if count == 100 else ()), Target(5, False, "usual"))
            rate = Row(load, "chunks/s of a worker", targets)
            cpu = Row(load, "worker CPU, µs per chunk")
            table += [rate, cpu]
            for run in range(runs):
                used = cpu_seconds(process.process.pid)
                rate.add("tokencast", await _ingested(broker, count, chunks, run))
                cpu.add("tokencast", (cpu_seconds(process.process.pid) - used) / count / chunks * 1e6)
                part = max(chunks // 5, 200)
                async with UsualWorker(redis.url, upstream, count, part) as usual:
                    await usual.ready()
                    usual.go()
                    worked = await usual.result()
                rate.add("usual", count * part / worked.seconds)
                cpu.add("usual", worked.cpu_s / count / part * 1e6)
    return table


async def _ingested(broker: Broker, count: int, chunks: int, run: int) -> float:
    """Chunks per second, from the first start to the last end according to the log."""
    bodies = [request_body(f"{run}.{n} [[sim length={chunks} speed=0]]", model="sim") for n in range(count)]
    ids = [one.id for one in await gather(*(broker.enqueue(body) for body in bodies))]

    async def over() -> bool:
        return (await broker.store.state(ids[-1], "default")).ended

    await wait_until(over)
    started: list[float] = []
    ended: list[float] = []
    for gid in ids:

        async def done(gid: str = gid) -> bool:
            return (await broker.store.state(gid, "default")).ended

        await wait_until(done)
        generation = await broker.store.state(gid, "default")
        assert generation.status == "completed"
        started.append(generation.started_at or 0.0)
        ended.append(generation.ended_at or 0.0)
        await broker.delete(gid)
    return count * chunks / (max(ended) - min(started))


@asynccontextmanager
async def _end_to_end() -> AsyncGenerator[tuple[Gateway, Broker, str], None]:
    """A gateway and two workers. Yields also the upstream's own address."""
    async with (
        EmbeddedRedis() as redis,
        connect(redis.url) as broker,
        upstream_sim() as upstream,
        worker(redis.url, upstream, TOKENCAST_SLOTS="1000"),
        worker(redis.url, upstream, TOKENCAST_SLOTS="1000"),
        gateway(redis.url) as api,
    ):
        yield api, broker, upstream.removesuffix("/v1")


async def end_to_end(quick: bool, runs: int) -> Rows:
    """W8, and the latency rows of W7: the same client calls upstream and broker alternately."""
    others = 200 if quick else 1000
    table: Rows = []
    async with _end_to_end() as (api, broker, upstream):
        urls = {"tokencast": api.url, "direct": upstream}
        for url in urls.values():  # connections, imports, caches
            await stream_lags(url, "[[sim stamp=1 length=20 speed=0]]")
        table += await _lags(urls, 50 if quick else 100, runs)
        table += await _firsts("W8 · POST to first chunk", urls, 30 if quick else 60, runs)
        bodies = [request_body(f"{n} [[sim length=100000 speed=1]]", model="sim") for n in range(others)]
        running = [one.id for one in await gather(*(broker.enqueue(body) for body in bodies))]

        async def all_run() -> bool:
            return await _count(broker, "in_progress") >= others

        await wait_until(all_run)
        load = f"W8 · POST to first chunk, {others:,} running"
        table += await _firsts(load, urls, 30 if quick else 60, runs)
        for gid in running:
            await broker.cancel(gid)
    return table


async def _count(broker: Broker, status: str) -> int:
    count, after = 0, None
    while True:
        page, more = await broker.store.list("default", status, 100, after)
        count += len(page)
        if not more:
            return count
        after = page[-1].id


async def _lags(urls: dict[str, str], length: int, runs: int) -> Rows:
    load = "W7 · 1 at 50/s, upstream to reader"
    p50, p99 = Row(load, "p50, ms"), Row(load, "p99, ms")
    for run in range(runs):
        for name, url in urls.items():
            lags = await stream_lags(url, f"{run} [[sim stamp=1 length={length} speed=50]]")
            p50.add(name, statistics.median(lags))
            p99.add(name, statistics.quantiles(lags, n=100, method="inclusive")[98])
    return [p50, p99]


async def _firsts(load: str, urls: dict[str, str], count: int, runs: int) -> Rows:
    """The added latency has its own rows, since it has the targets."""
    p50, p99 = Row(load, "p50, ms"), Row(load, "p99, ms")
    added50 = Row(load, "added at p50, ms", (Target(10, True),))
    added99 = Row(load, "added at p99, ms", (Target(30, True),))
    for run in range(runs):
        times: dict[str, list[float]] = {name: [] for name in urls}
        for n in range(count):
            for name, url in urls.items():
                times[name].append(await first_chunk(url, f"{run}.{n} [[sim length=3 speed=0]]"))
        for name, values in times.items():
            p50.add(name, statistics.median(values))
            p99.add(name, statistics.quantiles(values, n=100, method="inclusive")[98])
        added50.add("tokencast", p50.values["tokencast"][-1] - p50.values["direct"][-1])
        added99.add("tokencast", p99.values["tokencast"][-1] - p99.values["direct"][-1])
    return [p50, p99, added50, added99]


async def create_requests(quick: bool, runs: int) -> Rows:
    """W9: POSTs from 32 connections, and their round trips to Redis."""
    load = "W9 · POST /v1/generations × 32"
    rate, p99 = Row(load, "create_requests/s", (Target(1000),)), Row(load, "p99, ms")
    trips = Row(load, "reads by Redis per request")
    count = 2000 if quick else 6000
    async with tokencast() as system:
        for _ in range(runs):
            async with Poster(system.port, 32, count) as poster:
                await poster.ready()
                before = await _reads(system.broker)
                poster.go()
                posted = await poster.result()
                trips.add("tokencast", (await _reads(system.broker) - before) / count)
            rate.add("tokencast", count / posted.seconds)
            p99.add("tokencast", posted.p99_ms)
    return [rate, p99, trips]


async def _reads(broker: Broker) -> int:
    """The number of reads by Redis from its sockets: its round trips, if only one command or pipeline is in flight."""
    lines = (await broker.store.redis.info("stats", "")).decode().splitlines()
    return int(next(line for line in lines if line.startswith("total_reads_processed:")).split(":")[1])
