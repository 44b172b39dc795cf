"""The limit on a tenant's bytes of stored requests: as configured, or a fraction of Redis's memory limit."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import NamedTuple

from broker.concurrency.cancellation import cancel_and_wait
from broker.errors import StorageUnavailable
from broker.redis.client import Redis, RedisError

PARTS = 4
"""A tenant may use 1/PARTS of a bounded Redis, so that one tenant alone cannot fill it."""
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
    """`most`: the configured limit; None: a fraction of `maxmemory`, which is read in the background so that no request
    waits for it. Until the first answer, and if INFO is not allowed, there is no limit."""

    def __init__(self, redis: Redis, most: int | None) -> None:
        self._redis = redis
        self._set = most
        self._known = 0
        self._ask_at = 0.0
        self._asking: asyncio.Task[None] | None = None

    @property
    def bytes(self) -> int:
        """The limit in bytes; 0 = no limit."""
        if self._set is not None:
            return self._set
        if time.monotonic() >= self._ask_at and (self._asking is None or self._asking.done()):
            self._asking = asyncio.get_running_loop().create_task(self._ask())
        return self._known

    async def _ask(self) -> None:
        try:
            groups = [await self._redis.info("memory", group) for group in self._redis.servers.groups]
        except (StorageUnavailable, RedisError) as error:
            log.debug("cannot read maxmemory: %s", error)
        else:
            each = [_maxmemory(info) for info in groups]
            self._known = sum(each) // PARTS if all(each) else 0
        self._ask_at = time.monotonic() + KNOWN_FOR

    async def close(self) -> None:
        if self._asking is not None:
            await cancel_and_wait((self._asking,))


def _maxmemory(info: bytes) -> int:
    """Return `maxmemory` in bytes; 0 if there is no limit, or INFO does not contain it."""
    for line in info.splitlines():
        name, _, value = line.partition(b":")
        if name == b"maxmemory":
            return int(value)
    return 0
