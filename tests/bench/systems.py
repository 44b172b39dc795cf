"""The measured systems: the same load on the product, on the physical limit and on the peers."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import urlsplit

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from tests.bench.native import Fanout, Received, Subscribers
from tests.bench.peers.nchan import Nchan, nchan
from tests.bench.peers.usual import usual_gateway
from tests.bench.producing import Producer
from tests.support import request_body, service

FLOOD = 200  # events that the limit sends at once: more give no further gain
_fresh = itertools.count()


@dataclass(frozen=True)
class Load:
    """Each of `generations` has `events` events and `subscribers` readers. `rate`: events per second of each, 0 for a
    flood. A replay begins when all events exist."""

    generations: int
    subscribers: int
    events: int
    rate: float = 0
    replay: bool = False
    timeout: float = 60.0


class System(Protocol):
    async def run(self, load: Load) -> Received: ...


class Limit:
    """Raw sockets in C without a backend: one generation, with the number of subscribers of the whole load."""

    async def run(self, load: Load) -> Received:
        await wait_until_machine_is_idle()
        together, connections = 1 if load.rate else FLOOD, load.generations * load.subscribers
        async with (
            Fanout(connections, load.events, rate=load.rate, together=together, replay=load.replay) as fanout,
            Subscribers(
                fanout.port,
                ["/"],
                connections,
                events=load.events,
                timeout=load.timeout,
                ready_when="now" if load.replay else "answered",
            ) as subscribers,
        ):
            if not load.replay:
                await subscribers.ready()
                await fanout.ready()
                fanout.go()
            return await subscribers.result()


class Served:
    """A server to which a producer writes while the subscribers read."""

    port: int

    async def begin(self, count: int) -> list[str]:
        """Create generations. Returns their names for the producer."""
        raise NotImplementedError

    def path(self, name: str) -> str:
        """The path under which a name is read."""
        raise NotImplementedError

    def producer(self, names: Sequence[str], load: Load) -> Producer:
        raise NotImplementedError

    async def forget(self, names: Sequence[str]) -> None:
        """Delete the generations."""

    async def run(self, load: Load) -> Received:
        await wait_until_machine_is_idle()
        names = await self.begin(load.generations)
        try:
            async with self.producer(names, load) as producer:
                await producer.ready()
                if load.replay:
                    producer.go()
                    await producer.result()
                async with Subscribers(
                    self.port,
                    [self.path(name) for name in names],
                    load.generations * load.subscribers,
                    events=load.events,
                    timeout=load.timeout,
                    ready_when="now" if load.replay else "answered",
                ) as subscribers:
                    await subscribers.ready()
                    if not load.replay:
                        producer.go()
                    return await subscribers.result()
        finally:
            await self.forget(names)


class Tokencast(Served):
    """Redis and a gateway with default settings."""

    def __init__(self, broker: Broker, redis: EmbeddedRedis, port: int, pid: int) -> None:
        self.broker = broker
        self.redis = redis
        self.port = port
        self.pid = pid

    async def begin(self, count: int) -> list[str]:
        return [(await self.broker.enqueue(request_body(str(next(_fresh))))).id for _ in range(count)]

    def path(self, name: str) -> str:
        return f"/v1/generations/{name}/events"

    def producer(self, names: Sequence[str], load: Load) -> Producer:
        return Producer("append", self.redis.port, names, events=load.events, rate=load.rate)

    async def forget(self, names: Sequence[str]) -> None:
        for name in names:
            await self.broker.delete(name)


class NchanServer(Served):
    def __init__(self, server: Nchan) -> None:
        self.server = server
        self.port = server.port

    async def begin(self, count: int) -> list[str]:
        return [f"/pub/{next(_fresh)}" for _ in range(count)]

    def path(self, name: str) -> str:
        return name.replace("pub", "sub")

    def producer(self, names: Sequence[str], load: Load) -> Producer:
        return Producer("post", self.port, names, events=load.events, rate=load.rate)


class Usual(Served):
    def __init__(self, redis: EmbeddedRedis, port: int) -> None:
        self.redis = redis
        self.port = port

    async def begin(self, count: int) -> list[str]:
        return [f"s:{next(_fresh)}" for _ in range(count)]

    def path(self, name: str) -> str:
        return f"/s/{name.removeprefix('s:')}"

    def producer(self, names: Sequence[str], load: Load) -> Producer:
        return Producer("xadd", self.redis.port, names, events=load.events, rate=load.rate)


Name = Literal["tokencast", "limit", "nchan", "usual"]


@asynccontextmanager
async def tokencast(processes: int = 1, **variables: str) -> AsyncGenerator[Tokencast, None]:
    settings = {"PORT": "0", "TOKENCAST_DRAIN": "0.2", "TOKENCAST_MODELS": "m,sim", **variables}
    async with (
        EmbeddedRedis() as redis,
        connect(redis.url) as broker,
        service("api", "--processes", str(processes), REDIS_URL=redis.url, **settings) as process,
    ):
        for _ in range(processes):
            listening = (await process.says(r"listening on (http://\S+)"))[1]
        yield Tokencast(broker, redis, urlsplit(listening).port or 0, process.process.pid)


@asynccontextmanager
async def systems(*names: Name, messages: int = 5000) -> AsyncGenerator[dict[str, System], None]:
    """Run these systems. `messages`: the length of the longest generation."""
    async with AsyncExitStack() as stack:
        running: dict[str, System] = {}
        for name in names:
            if name == "tokencast":
                running[name] = await stack.enter_async_context(tokencast())
            elif name == "limit":
                running[name] = Limit()
            elif name == "nchan":
                running[name] = NchanServer(await stack.enter_async_context(nchan(messages=messages)))
            else:
                redis = await stack.enter_async_context(EmbeddedRedis())
                port, _ = await stack.enter_async_context(usual_gateway(redis.url))
                running[name] = Usual(redis, port)
        yield running


async def wait_until_machine_is_idle() -> None:
    """Wait until the machine is nearly idle, at most 15 seconds: an overloaded server continues for a while after its
    subscribers have disconnected, and would distort the next measurement."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        before = _busy_ticks()
        await asyncio.sleep(0.3)
        if _busy_ticks() - before <= 0.03 * os.sysconf("SC_CLK_TCK") * (os.cpu_count() or 1):
            return


def _busy_ticks() -> int:
    """The busy ticks of all processors; see proc_stat(5)."""
    user, nice, system, _idle, _iowait, irq, softirq, *_ = Path("/proc/stat").read_text().split(maxsplit=8)[1:8]
    return sum(map(int, (user, nice, system, irq, softirq)))


def cpu_seconds(*pids: int) -> float:
    """User and system time of the processes."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_kib(*pids: int, part: str = "Pss") -> int:
    """Their proportional set size: user space only, since kernel buffers belong to no process. `part`: "Pss_Anon" omits
    memory mapped from files, whose share grows when another process with the same mapping ends."""
    total = 0
    for pid in pids:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith(f"{part}:"))
    return total


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
