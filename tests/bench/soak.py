"""A soak test that detects growth over time: `python -m tests.bench.soak --minutes 30`.

Generations run continuously. Subscribers connect, follow for a while, disconnect and resume; half of them disconnect
abruptly. The resources of a gateway and a worker are recorded before, every ten seconds during, and after the load.
Retention and cache are small, so that they reach their limits long before the end.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.errors import BrokerError
from tests.bench.systems import memory_kib
from tests.support import Gateway, gateway, request_body, upstream_sim, wait_until, worker

RETENTION = 20  # seconds
VARIABLES = {"TOKENCAST_CACHE_BYTES": str(4 << 20), "TOKENCAST_HEARTBEAT": "2"}
READERS = 200
CREATE_INTERVAL = 0.1  # seconds
SAMPLE_INTERVAL = 10.0
WARM_UP = 60.0
COOL_DOWN = 30.0  # ended generations have expired by then


@dataclass
class Sample:
    """The resources at one moment; memory in MiB."""

    gateway: float
    worker: float
    gateway_files: int
    worker_files: int
    redis_clients: int
    redis: float

    def row(self, name: str) -> str:
        figures = (self.gateway, self.worker, self.gateway_files, self.worker_files, self.redis_clients, self.redis)
        return f"{name:12}" + "".join(f"{figure:>16,.1f}" for figure in figures)


HEAD = f"{'':12}" + "".join(
    f"{name:>16}"
    for name in ("gateway MiB", "worker MiB", "gateway files", "worker files", "Redis clients", "Redis MiB")
)


class Soak:
    def __init__(self, broker: Broker, api: Gateway, worker_pid: int) -> None:
        self._broker = broker
        self._api = api
        self._worker_pid = worker_pid
        self._ids: list[str] = []
        self.created = self.connections = self.events = 0

    async def sample(self) -> Sample:
        gateway_pid = self._api.process.process.pid
        redis = self._broker.store.redis
        clients = (await redis.info("clients", "")).decode()
        used = (await redis.info("memory", "")).decode()
        return Sample(
            memory_kib(gateway_pid, part="Pss_Anon") / 1024,
            memory_kib(self._worker_pid, part="Pss_Anon") / 1024,
            len(os.listdir(f"/proc/{gateway_pid}/fd")),
            len(os.listdir(f"/proc/{self._worker_pid}/fd")),
            _number("connected_clients", clients),
            _number("used_memory", used) / (1 << 20),
        )

    async def churn(self, seconds: float) -> list[Sample]:
        """Run the load. Returns samples of the resources."""
        until = time.monotonic() + seconds
        work = [
            asyncio.create_task(part) for part in (self._enqueue(until), *(self._read(until) for _ in range(READERS)))
        ]
        samples: list[Sample] = []
        while time.monotonic() < until:
            await asyncio.sleep(min(SAMPLE_INTERVAL, max(0.0, until - time.monotonic())))
            samples.append(await self.sample())
            print(samples[-1].row(f"{(until - time.monotonic()) / 60:.1f} min left"), file=sys.stderr, flush=True)
        await asyncio.gather(*work)
        return samples

    async def _enqueue(self, until: float) -> None:
        while time.monotonic() < until:
            self.created += 1
            length = random.choice((20, 100, 300))
            prompt = f"{self.created} [[sim length={length} speed={random.choice((0, 20, 50))}]]"
            self._ids = [
                *self._ids[-100:],
                (await self._broker.enqueue(request_body(prompt, model="sim", ttl_seconds=RETENTION))).id,
            ]
            if random.random() < 0.1:
                with suppress(BrokerError):
                    await self._broker.cancel(random.choice(self._ids))
            await asyncio.sleep(CREATE_INTERVAL)

    async def _read(self, until: float) -> None:
        while time.monotonic() < until:
            if not self._ids:
                await asyncio.sleep(CREATE_INTERVAL)
                continue
            gid, cursor = random.choice(self._ids), ""
            for _ in range(random.randint(1, 3)):
                cursor = await self._connection(gid, cursor, random.uniform(0.1, 3.0))

    async def _connection(self, gid: str, cursor: str, stay: float) -> str:
        """Follow a generation for at most `stay` seconds. Returns the last cursor."""
        where = urlsplit(self._api.url)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        self.connections += 1
        resume = f"Last-Event-ID: {cursor}\r\n" if cursor else ""
        writer.write(f"GET /v1/generations/{gid}/events HTTP/1.1\r\nHost: localhost\r\n{resume}\r\n".encode())
        received = b""
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(stay):
                while data := await reader.read(1 << 16):
                    received += data
        ids = re.findall(rb"^id: (\d+-\d+)$", received, re.MULTILINE)
        self.events += len(ids)
        if random.random() < 0.5:
            writer.transport.abort()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        return ids[-1].decode() if ids else cursor


def _number(name: str, text: str) -> int:
    found = re.search(rf"^{name}:(\d+)", text, re.MULTILINE)
    assert found is not None
    return int(found[1])


async def soak(minutes: float) -> None:
    async with (
        EmbeddedRedis() as redis,
        connect(redis.url) as broker,
        upstream_sim() as upstream,
        worker(redis.url, upstream, **VARIABLES) as process,
        gateway(redis.url, TOKENCAST_MAX_CONNECTIONS="5000", **VARIABLES) as api,
    ):
        soaking = Soak(broker, api, process.process.pid)
        await soaking.churn(min(WARM_UP, minutes * 15))  # imports, arenas, connection pools, a full cache
        await _wait_until_idle(soaking)
        first = await soaking.sample()
        samples = await soaking.churn(minutes * 60)
        await _wait_until_idle(soaking)
        last = await soaking.sample()
    peak = Sample(*(max(values) for values in zip(*(vars(sample).values() for sample in samples), strict=True)))
    print(f"{soaking.created:,} generations, {soaking.connections:,} connections, {soaking.events:,} events\n\n{HEAD}")
    for name, sample in (("before", first), ("maximum", peak), ("after", last)):
        print(sample.row(name))


async def _wait_until_idle(soaking: Soak) -> None:
    """Wait until all subscribers have disconnected and all generations have expired."""
    await asyncio.sleep(COOL_DOWN)

    async def disconnected() -> bool:
        return (await soaking.sample()).gateway_files < READERS

    await wait_until(disconnected)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    asyncio.run(soak(parser.parse_args().minutes))
