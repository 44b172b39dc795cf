"""Registers the worker in the queue's Redis, for operators and for `--check`."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from broker.errors import StorageUnavailable
from broker.queue.workers import MOST_LISTED
from broker.records import WorkerGeneration
from broker.redis.client import Redis, Script
from broker.redis.clock import RedisClock
from broker.store import keys
from broker.version import __version__

if TYPE_CHECKING:
    from worker.slots import Slots

PUT_HASH = Script("queue", "put_hash")
TTL = 15  # seconds
REFRESH_INTERVAL = 5.0
log = logging.getLogger("tokencast.worker")


def worker_id() -> str:
    """Make the id of this worker."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


class Heartbeat:
    """Refreshes the worker's record; `unregister` deletes it at the end. `registered` is set by the first refresh."""

    def __init__(
        self,
        redis: Redis,
        slots: Slots,
        worker: str,
        *,
        lease: float = 15.0,
        upstreams: Sequence[str] = (),
        is_draining: Callable[[], bool] = lambda: False,
        on_drain: Callable[[], None] = lambda: None,
    ) -> None:
        """`worker`: id of this worker. `lease`: that of generations, in seconds; with a shorter one than usual,
        heartbeats are more frequent too. `upstreams`: names of those that it can call. `on_drain`: called when an
        operator asks it to drain."""
        self._redis = redis
        self._clock = RedisClock(redis)
        self._slots = slots
        self._host = socket.gethostname()
        self._upstreams = msgspec.json.encode(upstreams)
        self._is_draining = is_draining
        self._on_drain = on_drain
        self._interval = REFRESH_INTERVAL * min(1.0, lease / 15)
        self._started = time.monotonic()
        self._soon = asyncio.Event()
        self.registered = asyncio.Event()
        self.id = worker

    async def run(self) -> None:
        while True:
            try:
                await self._refresh()
                self.registered.set()
            except StorageUnavailable:
                log.debug("heartbeat not refreshed")
            self._soon.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await self._soon.wait()

    def refresh_soon(self) -> None:
        """Refresh the record now: the worker begins to drain."""
        self._soon.set()

    async def _refresh(self) -> None:
        key, now = keys.worker(self.id), int(await self._clock.now() * 1000)
        claims = self._slots.claims[:MOST_LISTED]
        runs = [WorkerGeneration(one.gid, one.tenant, one.model, one.upstream, one.claimed_at) for one in claims]
        fields = {
            "host": self._host,
            "pid": os.getpid(),
            "slots": self._slots.capacity,
            "running": len(self._slots),
            "version": __version__,
            "upstreams": self._upstreams,
            "started": now - int((time.monotonic() - self._started) * 1000),
            "draining": int(self._is_draining()),
            "runs": msgspec.json.encode([msgspec.structs.astuple(one) for one in runs]),
        }
        await self._redis.run(PUT_HASH, (key,), (TTL * 1000, *(part for field in fields.items() for part in field)))
        *_, drain = await self._redis.pipeline(
            [
                ("ZADD", keys.WORKERS, now, self.id),
                ("ZREMRANGEBYSCORE", keys.WORKERS, "-inf", now - 86_400_000),
                ("EXPIRE", keys.WORKERS, 86_400),
                ("GET", keys.drain(self.id)),
            ]
        )
        if drain is not None and not self._is_draining():
            log.info("an operator asks this worker to drain")
            self._on_drain()

    async def unregister(self) -> None:
        await self._redis.pipeline(
            [("DEL", keys.worker(self.id), keys.drain(self.id)), ("ZREM", keys.WORKERS, self.id)]
        )


async def has_live_worker(redis: Redis) -> bool:
    """Return whether a worker on this host (in a container: in this container) is alive."""
    ids = await redis.execute("ZRANGE", keys.WORKERS, 0, -1)
    hosts = await redis.pipeline([("HGET", keys.worker(worker.decode()), "host") for worker in ids])
    return socket.gethostname().encode() in hosts
