"""Benchmarks of subscribers: the loads W1 to W6 and W10."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator

from broker.store.store import PAGE
from tests.bench.native import Received, Subscribers
from tests.bench.peers.nchan import NoNchan, nchan
from tests.bench.producing import Producer
from tests.bench.systems import (
    Load,
    Name,
    System,
    Tokencast,
    children,
    cpu_seconds,
    memory_kib,
    systems,
    tokencast,
)
from tests.bench.table import Row, Target

Rows = list[Row]
REPLAYED = 5000
SPEED = 50  # chunks per second of each generation, in W10
SORTED = 7  # seconds until the gateway has separated idle from active logs
PAGES = math.ceil((REPLAYED + 3) / PAGE)  # including the events before and after the chunks


def note(rows: Rows, system: str, received: Received) -> None:
    """Mark rows with a star if not every subscriber received every event."""
    for row in rows:
        if not received.whole:
            row.remarks.add(system)


async def alternating(
    load: Load, names: tuple[Name, ...], runs: int, messages: int
) -> AsyncIterator[tuple[str, Received]]:
    """Run the same load on each system alternately, `runs` times."""
    wanted = await _available(names)
    async with systems(*wanted, messages=messages) as running:
        for _ in range(runs):
            for name, system in running.items():
                yield name, await system.run(load)


async def _available(names: tuple[Name, ...]) -> tuple[Name, ...]:
    if "nchan" in names:
        try:
            async with nchan():
                pass
        except NoNchan:
            return tuple(name for name in names if name != "nchan")
    return names


async def live(quick: bool, runs: int) -> Rows:
    """W1: one generation, 200 chunks per second."""
    table: Rows = []
    all_systems: tuple[Name, ...] = ("tokencast", "limit", "nchan", "usual")
    for subscribers, targets, names in (
        (100, ((Target(1.3, True, "nchan"),), (Target(4, True),), ()), all_systems),
        (1000, ((), (Target(35, True),), ()), all_systems[:3] if quick else all_systems),
        (5000, ((), (Target(150, True),), (Target(0.95, False, "limit"),)), all_systems[: 2 if quick else 3]),
    ):
        load = f"W1 · 1 live × {subscribers:,}, 200/s"
        p50, p99 = Row(load, "p50, ms", targets[0]), Row(load, "p99, ms", targets[1])
        rate, together = Row(load, "delivered/s", targets[2]), Row(load, "events per read")
        table += [p50, p99, rate, together]
        events = 300 if quick else 1000
        async for name, got in alternating(Load(1, subscribers, events, 200, timeout=40), names, runs, events + 100):
            note([p50, p99, rate], name, got)
            together.add(name, got.events / got.recvs)
            p50.add(name, got.lat_us.p50 / 1000)
            p99.add(name, got.lat_us.p99 / 1000)
            rate.add(name, got.ev_s)
    return table


async def flood(quick: bool, runs: int) -> Rows:
    """W2: one generation as fast as it can be appended. The peers get fewer events, since they would take minutes."""
    load = "W2 · 1 flood × 500"
    row = Row(
        load, "delivered/s", (Target(0.75, False, "limit"), Target(20, False, "nchan"), Target(100, False, "usual"))
    )
    together = Row(load, "events per read")
    two = Row(f"{load}, two processes", "delivered/s")
    events = 10_000 if quick else 20_000
    whole, part = Load(1, 500, events), Load(1, 500, 1000 if quick else 2000)
    async with (
        systems(*await _available(("tokencast", "limit", "nchan", "usual"))) as running,
        tokencast(processes=2) as pair,
    ):
        for _ in range(runs):
            for name, system in running.items():
                got = await system.run(whole if name in ("tokencast", "limit") else part)
                note([row], name, got)
                row.add(name, got.ev_s)
                together.add(name, got.events / got.recvs)
            got = await pair.run(whole)
            note([two], "tokencast", got)
            two.add("tokencast", got.ev_s)
    return [row, together, two]


async def many_generations(quick: bool, runs: int) -> Rows:
    """W3: 200 live generations with 5 subscribers each. The limit sends one generation, as often and to the same
    number. Then the rate grows until the load is no longer sustained."""
    table: Rows = []
    few: tuple[Name, ...] = ("tokencast", "limit", "nchan")
    for rate, most, names in ((50, 30, few if quick else (*few, "usual")), (200, 150, few[:2])):
        load = f"W3 · 200 live × 5, {rate}/s each"
        p50, p99, delivered = (
            Row(load, "p50, ms"),
            Row(load, "p99, ms", (Target(most, True),)),
            Row(load, "delivered/s"),
        )
        table += [p50, p99, delivered]
        events = rate * (2 if quick else 4)
        async for name, got in alternating(Load(200, 5, events, rate, timeout=30), names, runs, events + 100):
            note([p50, p99, delivered], name, got)
            p50.add(name, got.lat_us.p50 / 1000)
            p99.add(name, got.lat_us.p99 / 1000)
            delivered.add(name, got.ev_s)
    async with tokencast(processes=2) as pair:
        load = "W3 · 200 live × 5, 200/s each, two processes"
        p99 = Row(load, "p99, ms")
        for _ in range(runs):
            got = await pair.run(Load(200, 5, 400 if quick else 800, 200, timeout=30))
            note([p99], "tokencast", got)
            p99.add("tokencast", got.lat_us.p99 / 1000)
        table.append(p99)
    if not quick:
        table += await _maximum()
    return table


async def _maximum() -> Rows:
    sustained, p99 = Row("W3 · 200 live × 5, maximum", "appends/s"), Row("W3 · 200 live × 5, maximum", "p99, ms")
    best: tuple[int, float] = (0, 0.0)
    async with tokencast() as system:
        for rate in (100, 150, 200, 250, 300, 400, 500, 600, 800):
            got = await system.run(Load(200, 5, rate * 4, rate, timeout=30))
            if not got.whole or got.ev_s < 0.97 * rate * 1000 or got.lat_us.p99 > 1_000_000:
                break
            best = rate * 200, got.lat_us.p99 / 1000
    sustained.add("tokencast", best[0])
    p99.add("tokencast", best[1])
    return [sustained, p99]


async def replay(quick: bool, runs: int) -> Rows:
    """W4: a finished generation of 5,000 chunks for all subscribers at once, from the first connect to the last
    event."""
    load = "W4 · replay of 5,000 × 500"
    rate = Row(load, "delivered/s", (Target(0.75, False, "limit"), Target(15, False, "nchan")))
    reads = Row(load, "reads of the log from Redis", (Target(1, True),))
    whole = Load(1, 500, REPLAYED, replay=True, timeout=60)
    part = Load(1, 500, 1000, replay=True, timeout=60)
    async with systems(*await _available(("tokencast", "limit", "nchan", "usual"))) as running:
        for _ in range(runs):
            for name, system in running.items():
                before = await pages_read(system)
                got = await system.run(whole if name in ("tokencast", "limit") or not quick else part)
                note([rate], name, got)
                rate.add(name, got.events / ((got.last_us - got.start_us) / 1e6))
                if isinstance(system, Tokencast):
                    reads.add(name, (await pages_read(system) - before) / PAGES)
    return [rate, reads]


async def pages_read(system: System) -> int:
    if not isinstance(system, Tokencast):
        return 0
    statistics = (await system.broker.store.redis.info("commandstats", "")).decode()
    calls = [line for line in statistics.splitlines() if line.startswith("cmdstat_xrange:")]
    return int(calls[0].split("calls=")[1].split(",")[0]) if calls else 0


async def idle(quick: bool, runs: int) -> Rows:
    """W5: subscribers of a queued generation."""
    connections = 2000 if quick else 10_000
    load = f"W5 · {connections:,} idle"
    memory, cpu = Row(load, "KiB per subscriber", (Target(18, True),)), Row(load, "% of a core", (Target(2, True),))
    connects = Row(load, "connects/s", (Target(3000),))
    for _ in range(1 if quick else runs):
        for name in await _available(("tokencast", "nchan")):
            context = tokencast() if name == "tokencast" else nchan()
            async with context as server:
                pids = children(server.pid) if name == "nchan" else [server.pid]
                [begun] = await server.begin(1) if isinstance(server, Tokencast) else ["/pub/x"]
                path = server.path(begun) if isinstance(server, Tokencast) else "/sub/x"
                before, seconds = memory_kib(*pids), 3.0 if quick else 30.0
                async with Subscribers(
                    server.port, [path], connections, idle=seconds + 3, arriving=128, timeout=60
                ) as subscribers:
                    await subscribers.ready()
                    await asyncio.sleep(1)
                    memory.add(name, (memory_kib(*pids) - before) / connections)
                    started, used = time.monotonic(), cpu_seconds(*pids)
                    await asyncio.sleep(seconds)
                    cpu.add(name, (cpu_seconds(*pids) - used) / (time.monotonic() - started) * 100)
                    got = await subscribers.result()
                    connects.add(name, got.connected / got.connect_s)
    return [memory, cpu, connects]


async def single(quick: bool, runs: int) -> Rows:
    """W6: one subscriber, 50 chunks per second."""
    load = "W6 · 1 live × 1, 50/s"
    p50, p99 = Row(load, "p50, ms", (Target(0.8, True),)), Row(load, "p99, ms", (Target(2, True),))
    events = 100 if quick else 300
    names: tuple[Name, ...] = ("tokencast", "limit", "nchan", "usual")
    async for name, got in alternating(Load(1, 1, events, 50), names, runs, events + 100):
        note([p50, p99], name, got)
        p50.add(name, got.lat_us.p50 / 1000)
        p99.add(name, got.lat_us.p99 / 1000)
    return [p50, p99]


async def mostly_idle(quick: bool, runs: int) -> Rows:
    """W10: ten active generations with 50 chunks per second each, followed on their own or together with 990 idle
    ones."""
    row = Row(
        "W10 · 1,000 followed, 10 of them live", "Redis CPU per chunk, relative to 10 followed", (Target(1.5, True),)
    )
    seconds = 2 if quick else 5
    async with tokencast() as system:
        for _ in range(runs):
            few = await _cost(system, 10, 1, seconds)
            row.add("tokencast", await _cost(system, 1000, SORTED, seconds) / few)
    return [row]


async def _cost(system: Tokencast, followed: int, after: int, seconds: int) -> float:
    """Redis's CPU seconds per delivered chunk, beginning `after` seconds after the start."""
    events = (after + seconds) * SPEED
    names = await system.begin(followed)
    live = names[:: followed // 10]
    others = [name for name in names if name not in set(live)]
    async with (
        Producer("append", system.redis.port, live, events=events, rate=SPEED) as producer,
        Subscribers(system.port, [system.path(name) for name in live], 10, events=events) as readers,
        Subscribers(
            system.port, [system.path(name) for name in others or live], followed, idle=120, timeout=120
        ) as more,
    ):
        for tool in (readers, more, producer):
            await tool.ready()
        producer.go()
        await asyncio.sleep(after)
        used = await _redis_cpu(system)
        await producer.result()
        cost = (await _redis_cpu(system) - used) / (10 * seconds * SPEED)
        await readers.result()
    await system.forget(names)
    return cost


async def _redis_cpu(system: Tokencast) -> float:
    """Redis's CPU seconds from its own count, since the kernel's has a resolution of ten milliseconds."""
    lines = (await system.broker.store.redis.info("cpu", "")).decode().splitlines()
    return sum(float(line.split(":")[1]) for line in lines if line.startswith(("used_cpu_sys:", "used_cpu_user:")))
