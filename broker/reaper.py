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
from collections.abc import Sequence

from broker import keys
from broker.connection import Redis, RedisError, Reply, Script
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
        gids = [gid.decode() for shard in due for gid in shard]
        for gid, verdict in zip(gids, await self._reap(gids), strict=True):
            if verdict is None or verdict[0] == b"NO":
                continue
            if verdict[0] == b"FAILED":
                log.warning("%s: failed (attempts_exhausted)", gid)
            elif await self._queue.enqueue(gid, verdict[2].decode(), int(verdict[1])):
                log.info("%s: queued again", gid)

    async def _reap(self, gids: Sequence[str]) -> list[Reply]:
        calls = [(lifecycle_keys(gid), (gid, secrets.randbelow(1024), self._max_attempts)) for gid in gids]
        if not calls:
            return []
        try:
            return await self._redis.run_many(REAP, calls)
        except RedisError:
            return [await self._reap_alone(*call) for call in calls]

    async def _reap_alone(self, call_keys: Sequence[str], args: tuple[str, int, int]) -> Reply:
        """One that Redis refuses must not stop the others."""
        try:
            return await self._redis.run(REAP, call_keys, args)
        except RedisError as error:
            log.error("%s: cannot be reaped: %s", args[0], type(error).__name__)
            return None
