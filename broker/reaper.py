"""Finds generations that nobody runs or waits for, and sees that each still gets its ending.

Every worker and gateway has one, so that no single process must live. The scripts decide, by Redis's clock, under
which generation a lease has run out; two reapers at once do no harm.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time

from broker import keys
from broker.connection import Redis, RedisError, Script
from broker.errors import StorageUnavailable
from broker.ids import SHARDS
from broker.queue import Queue
from broker.settings import Settings
from broker.store import lifecycle_keys

DUE = Script("due")
REAP = Script("reap")
AT_ONCE = 100  # generations per shard and sweep
log = logging.getLogger("tokencast.reaper")


class Reaper:
    """`run` sweeps every 4 to 5 s (less often would break "a worker's death costs at most 20 s")."""

    def __init__(self, redis: Redis, queue: Queue, settings: Settings) -> None:
        self._redis = redis
        self._queue = queue
        self._lease = settings.lease
        self._max_attempts = settings.max_attempts
        self._period = 5.0 * min(1.0, settings.lease / 15)
        self._away = False
        self._still_until = 0.0
        self._swept_at = time.time()

    async def run(self) -> None:
        """Until cancelled; survives every error."""
        while True:
            await asyncio.sleep(self._period * random.uniform(0.8, 1))
            try:
                if await self._may_sweep():
                    await self.sweep()
            except StorageUnavailable as error:
                if not self._away:
                    log.warning("no sweep: %s", error)
                self._away = True
            except Exception:
                log.exception("sweep failed")

    async def _may_sweep(self) -> bool:
        """Not for one lease after Redis, or this machine, was away: all leases ran out because nobody could renew
        them, and the owners come back at the same time as we do."""
        uptime = await self._uptime()
        now, slept = time.time(), time.time() - self._swept_at
        self._swept_at = now
        if self._away or slept > self._period + self._lease / 2:
            self._still_until = time.monotonic() + self._lease
        self._away = False
        return time.monotonic() >= self._still_until and uptime >= self._lease

    async def _uptime(self) -> float:
        """Seconds since the server started; unknown (so: long) where INFO is not allowed."""
        try:
            info = await self._redis.execute("INFO", "server")
        except RedisError:
            return float("inf")
        for line in bytes(info).splitlines():
            if line.startswith(b"uptime_in_seconds:"):
                return float(line.partition(b":")[2])
        return float("inf")

    async def sweep(self) -> None:
        """One look at all shards."""
        due = await self._redis.run_many(DUE, [((keys.live(shard),), (AT_ONCE,)) for shard in SHARDS])
        for shard in due:
            for gid in shard:
                await self._reap(gid.decode())

    async def _reap(self, gid: str) -> None:
        """One by one, each with its ticket: of a pipeline with one failure all replies would be lost, and with them
        tickets."""
        try:
            verdict = await self._redis.run(
                REAP, lifecycle_keys(gid), (gid, secrets.randbelow(1024), self._max_attempts)
            )
        except RedisError as error:
            log.error("%s: cannot be reaped: %s", gid, type(error).__name__)
            return
        if verdict[0] == b"FAILED":
            log.warning("%s: failed (attempts_exhausted)", gid)
        elif verdict[0] == b"REQUEUE":
            await self._enqueue(gid, verdict[2].decode(), int(verdict[1]))

    async def _enqueue(self, gid: str, tenant: str, number: int) -> None:
        try:
            if await self._queue.enqueue(gid, tenant, number):
                log.info("%s: queued again", gid)
        except StorageUnavailable as error:  # the queue's Redis; the generation is due again in five seconds
            log.warning("%s: no ticket yet: %s", gid, error.code)
