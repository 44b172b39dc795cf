"""The processes of a chaos run, and the faults applied to them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

import httpx2

from broker.dev.embedded_redis import EmbeddedRedis, free_port
from broker.errors import StorageUnavailable
from broker.redis.client import RedisError, connect_redis
from broker.settings.settings import SIMULATED_KEY
from broker.store import keys
from tests.chaos.plan import GATEWAYS, LEASE, QUOTA, WORKERS, Fault
from tests.servers.redis_proxy import RedisProxy
from tests.support import Service, clean_environment, script, upstream_sim

MAX_ATTEMPTS = 5
SETTINGS = {
    "TOKENCAST_LEASE": str(LEASE),
    "TOKENCAST_HEARTBEAT": "1",
    "TOKENCAST_SEND_TIMEOUT": "3",
    "TOKENCAST_DRAIN": "0.5",
    "TOKENCAST_WORKER_DRAIN": "3",
    "TOKENCAST_IDLE_TIMEOUT": "10",
    "TOKENCAST_FIRST_TOKEN_TIMEOUT": "10",
    "TOKENCAST_MAX_ATTEMPTS": str(MAX_ATTEMPTS),
    "TOKENCAST_MODELS": "sim",
    "TOKENCAST_LOG": "json",
}
LEFT_TIMEOUT = 5 * LEASE
STOP_TIMEOUT = 20.0  # seconds for a process to stop after SIGTERM


class Process:
    """A worker or a gateway with its own proxy in front of Redis. It keeps its address over restarts."""

    def __init__(self, kind: str, number: int, redis_url: str, **variables: str) -> None:
        self.name = f"{kind} {number}"
        self.proxy = RedisProxy(redis_url)
        self.service: Service | None = None
        self.complaints: list[str] = []
        self.past: list[Service] = []
        self._kind = kind
        self._variables = {**SETTINGS, **variables}
        self._turn = asyncio.Lock()

    async def start(self, **more: str) -> None:
        if self.proxy.port == 0:
            await self.proxy.open()
        environment = clean_environment(**self._variables, **more, REDIS_URL=self.proxy.url)
        self.service = await Service.start(self._kind, environment=environment)
        self.past.append(self.service)

    @asynccontextmanager
    async def down(self, how: Callable[[Service], Awaitable[None]], **more: str) -> AsyncIterator[None]:
        """End the process with `how`, and restart it after the block. One at a time."""
        async with self._turn:
            service = self.service
            assert service is not None
            if service.process.returncode is not None:
                self.complaints.append(f"{self.name} ended unexpectedly:\n" + "\n".join(service.lines[-20:]))
            await how(service)
            yield
            await self.start(**more)

    async def kill(self, service: Service) -> None:
        service.send(signal.SIGKILL)
        await service.wait()

    async def stop(self, service: Service) -> None:
        service.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await service.process.wait()
        except TimeoutError:
            self.complaints.append(f"{self.name} does not stop:\n" + "\n".join(service.lines[-20:]))
            await self.kill(service)

    async def paused(self, seconds: float) -> None:
        async with self._turn:
            assert self.service is not None
            self.service.send(signal.SIGSTOP)
            await asyncio.sleep(seconds)
            self.service.send(signal.SIGCONT)

    async def end(self) -> None:
        async with self._turn:
            if self.service is not None:
                self.service.send(signal.SIGCONT)
                await self.stop(self.service)
            self.proxy.resume()
            await self.proxy.close()

    def tracebacks(self) -> list[str]:
        return [line for service in self.past for line in service.lines if "Traceback" in line]


class World:
    """A context manager: Redis with an append-only file, three workers, two gateways, a simulated upstream with a
    quota."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        """The number of applied faults by kind."""
        self.left: dict[str, int] = {}
        """What the queue still has after all generations have ended."""
        self.counts: dict[str, int] = {}
        """The upstream's counts of its calls."""
        self.losses = 0
        """The number of restarts of Redis with empty data."""
        self._up = asyncio.Event()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._dir = Path(tempfile.mkdtemp(prefix="tokencast-chaos-"))
        self._stack.callback(shutil.rmtree, self._dir, ignore_errors=True)
        self.redis = await self._stack.enter_async_context(EmbeddedRedis(appendonly=True, dir=self._dir))
        self.upstream = await self._stack.enter_async_context(
            upstream_sim("--quota", json.dumps({"concurrency": QUOTA}))
        )
        self._direct = await self._stack.enter_async_context(connect_redis(self.redis.url))
        credentials = {"OPENAI_BASE_URL": self.upstream, "OPENAI_API_KEY": SIMULATED_KEY}
        self.workers = [Process("worker", n, self.redis.url, **credentials) for n in range(WORKERS)]
        ports = [free_port() for _ in range(GATEWAYS)]
        self.gateways = [Process("api", n, self.redis.url, PORT=str(port)) for n, port in enumerate(ports)]
        self.urls = [f"http://127.0.0.1:{port}" for port in ports]
        for process in self.processes:
            await process.start()
            self._stack.push_async_callback(process.end)
        for process in self.gateways:
            assert process.service is not None
            await process.service.says("listening")
        self._redis_turn = asyncio.Lock()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def processes(self) -> list[Process]:
        return [*self.workers, *self.gateways]

    async def apply(self, fault: Fault) -> None:
        """Apply a fault and return when it is over."""
        self.done[fault.kind] += 1
        worker = self.workers[fault.target % WORKERS]
        gateway = self.gateways[fault.target % GATEWAYS]
        anyone = self.processes[fault.target % (WORKERS + GATEWAYS)]
        match fault.kind:
            case "kill-worker":
                await self._downtime(worker, worker.kill, fault.lasts)
            case "kill-gateway":
                await self._downtime(gateway, gateway.kill, fault.lasts)
            case "stop-worker":
                await self._downtime(worker, worker.stop, 0)
            case "stop-gateway":
                await self._downtime(gateway, gateway.stop, 0)
            case "skew-worker":
                await self._downtime(worker, worker.stop, 0, **skewed(fault.lasts))
            case "pause-worker":
                await worker.paused(fault.lasts)
            case "roll":
                for process in self.processes:
                    await self._downtime(process, process.stop, 0)
            case "kill-redis" | "empty-redis":
                await self._restart_redis(fault.lasts, empty=fault.kind == "empty-redis")
            case "full-redis":
                await self._full_redis(fault.lasts)
            case "outage":
                await self.ask_upstream("PATCH", "/sim/quota", {"outage": fault.lasts})
            case "forget-scripts":
                await self._send_to_redis("SCRIPT", "FLUSH")
            case _:
                await disturb(anyone.proxy, fault)

    async def _downtime(
        self, process: Process, how: Callable[[Service], Awaitable[None]], lasts: float, **more: str
    ) -> None:
        async with process.down(how, **more):
            await asyncio.sleep(lasts)

    async def _restart_redis(self, lasts: float, *, empty: bool) -> None:
        async with self._redis_turn:
            self.redis.kill()
            if empty:
                self.losses += 1
                shutil.rmtree(self._dir / "appendonlydir", ignore_errors=True)
            await asyncio.sleep(lasts)
            await self.redis.restart()

    async def _full_redis(self, lasts: float) -> None:
        await self._send_to_redis("CONFIG", "SET", "maxmemory", "1")
        await asyncio.sleep(lasts)
        async with self._redis_turn:
            await self._send_to_redis("CONFIG", "SET", "maxmemory", "0")

    async def _send_to_redis(self, *command: str) -> None:
        with contextlib.suppress(StorageUnavailable, RedisError):  # unreachable: it loses the setting with its restart
            await self._direct.execute(*command)

    async def ask_upstream(self, method: str, path: str, body: object = None) -> Any:
        """Call a control route of the simulated upstream."""
        async with httpx2.AsyncClient() as http:
            return (await http.request(method, self.upstream.removesuffix("/v1") + path, json=body)).json()

    async def count_left(self) -> None:
        """Wait until the queue is empty and no place is held, for a few leases: all generations have ended."""
        deadline = asyncio.get_running_loop().time() + LEFT_TIMEOUT
        while True:
            with contextlib.suppress(StorageUnavailable, RedisError):
                seconds, _ = await self._direct.execute("TIME")
                places = (
                    "ZCOUNT",
                    keys.places("default"),
                    int(seconds) * 1000,
                    "+inf",
                )  # without those that have ended
                counts = await self._direct.pipeline([places, ("HLEN", keys.DEPTH), ("ZCARD", keys.READY)])
                self.left = dict(zip(("places", "waiting tickets", "granted tickets"), map(int, counts), strict=True))
                if not any(counts):
                    break
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.1)
        self.counts = await self.ask_upstream("GET", "/sim/counts")

    def claims(self) -> Counter[str]:
        """How often workers have taken each generation, by its id."""
        lines = (line for worker in self.workers for service in worker.past for line in service.lines)
        return Counter(found[1] for line in lines if (found := re.search(r"(gen_\w+): attempt ", line)))

    def complaints(self) -> list[str]:
        """Errors of the processes themselves."""
        found = [complaint for process in self.processes for complaint in process.complaints]
        return found + [f"{process.name}: {line}" for process in self.processes for line in process.tracebacks()]


async def disturb(proxy: RedisProxy, fault: Fault) -> None:
    """Apply a fault of the connection between one process and Redis."""
    match fault.kind:
        case "cut":
            await proxy.close()
            await asyncio.sleep(fault.lasts)
            await proxy.open()
        case "reset":
            proxy.reset()
        case "half-open":
            proxy.blackhole()
        case "delay":
            proxy.pause()
            await asyncio.sleep(fault.lasts)
            proxy.resume()
        case "lose-reply":
            proxy.lose_reply_to = script(fault.detail).sha.encode()
        case _:
            raise ValueError(fault.kind)


def skewed(amount: float) -> dict[str, str]:
    """Variables for a clock that is half a minute fast or slow, if the library for it is installed."""
    for library in Path("/usr/lib").glob("*/faketime/libfaketime.so.1"):
        offset = "+31s" if amount > 0.8 else "-31s"
        return {"LD_PRELOAD": str(library), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    return {}
