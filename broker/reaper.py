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
from broker.checks import forbidden
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
        self._groups = redis.servers.groups
        self._away: set[str] = set()
        self._said: set[str] = set()
        self._seen: dict[str, bytes] = {}
        self._still_until: dict[str, float] = {}
        self._swept_at = time.time()
        self.failed = 0
        """Generations ended as `attempts_exhausted`."""

    async def run(self) -> None:
        """Until cancelled; survives every error."""
        while True:
            await asyncio.sleep(self._period * random.uniform(0.8, 1))
            if self._overslept():
                self._away.update(self._groups)
            await asyncio.gather(*map(self._visit, self._groups))

    async def _visit(self, group: str) -> None:
        """On a cluster each server is on its own: one that is away keeps nobody from looking at the others."""
        try:
            if await self._may_sweep(group):
                await self.sweep(group)
                self._said.discard(group)
        except StorageUnavailable as error:
            if not self._said:
                log.warning("no sweep: %s", error)
            self._said.add(group)
            self._away.add(group)
        except Exception:
            log.exception("sweep failed")

    def _overslept(self) -> bool:
        """Whether this machine was away."""
        now, slept = time.time(), time.time() - self._swept_at
        self._swept_at = now
        return slept > self._period + self._lease / 2

    async def _may_sweep(self, group: str) -> bool:
        """Not for one lease after Redis, or this machine, was away, or another server took over: all leases ran out
        because nobody could renew them, and the owners come back at the same time as we do."""
        uptime, server = await self._about(group)
        if group in self._away or self._seen.get(group, server) != server:
            self._still_until[group] = time.monotonic() + self._lease
        self._seen[group] = server
        self._away.discard(group)
        return time.monotonic() >= self._still_until.get(group, 0.0) and uptime >= self._lease

    async def _about(self, group: str) -> tuple[float, bytes]:
        """Seconds since the server started, and which one it is; unknown (so: long) where INFO is not allowed."""
        try:
            info = await self._redis.info("server", group)
        except RedisError:
            info = b""
        except StorageUnavailable as error:
            if not forbidden(error):
                raise
            info = b""
        about = dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)
        return float(about.get(b"uptime_in_seconds", "inf")), about.get(b"run_id", b"")

    async def sweep(self, group: str) -> None:
        """One look at the shards of a group."""
        shards = [shard for shard in SHARDS if self._redis.servers.group(shard) == group]
        due = await self._redis.run_many(DUE, [((keys.live(shard),), (AT_ONCE,)) for shard in shards])
        for members in due:
            for gid in members:
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
            self.failed += 1
            log.warning("%s: failed (attempts_exhausted)", gid)
        elif verdict[0] == b"REQUEUE":
            await self._enqueue(gid, verdict[2].decode(), int(verdict[1]))

    async def _enqueue(self, gid: str, tenant: str, number: int) -> None:
        try:
            if await self._queue.enqueue(gid, tenant, number):
                log.info("%s: queued again", gid)
        except StorageUnavailable as error:  # the queue's Redis; the generation is due again in five seconds
            log.warning("%s: no ticket yet: %s", gid, error.code)
