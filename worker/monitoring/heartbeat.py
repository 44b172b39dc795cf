"""Registers the worker in the queue's Redis, for operators and for `--check`."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from typing import TYPE_CHECKING

from broker.errors import StorageUnavailable
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

    def __init__(self, redis: Redis, slots: Slots, worker: str) -> None:
        """`worker`: id of this worker."""
        self._redis = redis
        self._clock = RedisClock(redis)
        self._slots = slots
        self._host = socket.gethostname()
        self.registered = asyncio.Event()
        self.id = worker

    async def run(self) -> None:
        while True:
            try:
                await self._refresh()
                self.registered.set()
            except StorageUnavailable:
                log.debug("heartbeat not refreshed")
            await asyncio.sleep(REFRESH_INTERVAL)

    async def _refresh(self) -> None:
        key, now = keys.worker(self.id), int(await self._clock.now() * 1000)
        fields = {
            "host": self._host,
            "pid": os.getpid(),
            "slots": self._slots.capacity,
            "running": len(self._slots),
            "version": __version__,
        }
        await self._redis.run(PUT_HASH, (key,), (TTL * 1000, *(part for field in fields.items() for part in field)))
        await self._redis.pipeline(
            [
                ("ZADD", keys.WORKERS, now, self.id),
                ("ZREMRANGEBYSCORE", keys.WORKERS, "-inf", now - 86_400_000),
                ("EXPIRE", keys.WORKERS, 86_400),
            ]
        )

    async def unregister(self) -> None:
        await self._redis.pipeline([("DEL", keys.worker(self.id)), ("ZREM", keys.WORKERS, self.id)])


async def has_live_worker(redis: Redis) -> bool:
    """Return whether a worker on this host (in a container: in this container) is alive."""
    ids = await redis.execute("ZRANGE", keys.WORKERS, 0, -1)
    hosts = await redis.pipeline([("HGET", keys.worker(worker.decode()), "host") for worker in ids])
    return socket.gethostname().encode() in hosts
