"""The limit on a tenant's bytes of stored requests: as configured, or a fraction of Redis's memory limit."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from broker.concurrency.cancellation import cancel_and_wait
from broker.errors import StorageUnavailable
from broker.redis.client import Redis, RedisError

SHARES = 4
"""A tenant may use 1/SHARES of a bounded Redis, so that one tenant alone cannot fill it."""
KNOWN_FOR = 60.0  # seconds until Redis is queried again
HOUR_MS = 3_600_000
log = logging.getLogger("tokencast.broker")


class Stored(NamedTuple):
    """Bytes of a request, and the time at which its generation expires if it runs at once (unix ms)."""

    size: int
    until_ms: int

    @property
    def hour(self) -> int:
        """Hour since the epoch in which nothing of it is left: a run takes time, and a tombstone stays for an hour."""
        return self.until_ms // HOUR_MS + 2


NOTHING = Stored(0, 0)


class StorageShare:
    """`configured`: returns the limit set for a tenant, None for a fraction of `maxmemory`. This is read in the
    background, so that no request waits for it: until the first answer, and if INFO is not allowed, it is no limit."""

    def __init__(self, redis: Redis, configured: Callable[[str], int | None]) -> None:
        self._redis = redis
        self._configured = configured
        self._known = 0
        self._query_at = 0.0
        self._query: asyncio.Task[None] | None = None

    def limit_of(self, tenant: str) -> int:
        """Return the limit of a tenant in bytes; 0 = no limit."""
        configured = self._configured(tenant)
        if configured is not None:
            return configured
        if time.monotonic() >= self._query_at and (self._query is None or self._query.done()):
            self._query = asyncio.get_running_loop().create_task(self._read_maxmemory())
        return self._known

    async def _read_maxmemory(self) -> None:
        try:
            groups = [await self._redis.info("memory", group) for group in self._redis.topology.groups]
        except (StorageUnavailable, RedisError) as error:
            log.debug("cannot read maxmemory: %s", error)
        else:
            each = [_maxmemory(info) for info in groups]
            self._known = sum(each) // SHARES if all(each) else 0
        self._query_at = time.monotonic() + KNOWN_FOR

    async def close(self) -> None:
        if self._query is not None:
            await cancel_and_wait((self._query,))


def _maxmemory(info: bytes) -> int:
    """Return `maxmemory` in bytes; 0 if there is no limit, or INFO does not contain it."""
    for line in info.splitlines():
        name, _, value = line.partition(b":")
        if name == b"maxmemory":
            return int(value)
    return 0
