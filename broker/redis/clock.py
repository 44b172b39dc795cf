"""Redis's clock, the only one that all processes share.

The clock of a single machine may be wrong. Every time that is compared with one written by a script or by another
process therefore comes from Redis: ids and `created_at`, token expiry, worker heartbeats, retry times.
"""

from __future__ import annotations

import time
from contextlib import suppress

from broker.concurrency.shared_call import SharedCall
from broker.errors import StorageUnavailable
from broker.redis.client import Redis

AGAIN = 1.0  # seconds until the next query after a failed one
FRESH = 30.0  # seconds for which an answer is used: later, this machine's clock may have been set


class RedisClock:
    """This machine's clock, corrected by the offset of Redis's clock at the last query."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._offset = 0.0
        self._refresh = SharedCall(self._try_sync)
        self._stale_at = float("-inf")

    async def now(self) -> float:
        """Return Unix seconds, never ahead of Redis's own clock, so that a time derived from it never lies in Redis's
        future. If Redis is unavailable, the last known offset is used. Concurrent calls share one query and its
        failure: none of them waits longer than one query takes."""
        if time.monotonic() > self._stale_at:
            await self._refresh()
        return time.time() + self._offset

    async def _try_sync(self) -> None:
        with suppress(StorageUnavailable):
            await self.sync()
            return
        self._stale_at = time.monotonic() + AGAIN

    def estimate(self) -> float:
        """Return Unix seconds by the last known offset, without a query: for callers that must not wait and that
        tolerate an offset measured an hour ago."""
        return time.time() + self._offset

    def to_local(self, moment: float) -> float:
        """Convert a time of Redis's clock to this machine's clock."""
        return moment - self._offset

    async def sync(self) -> tuple[float, float]:
        """Query Redis. Return the minimum and maximum by which its clock is ahead of this machine's (seconds; the two
        differ by the round trip; negative if it is behind). StorageUnavailable."""
        sent = time.time()
        seconds, micros = await self._redis.execute("TIME")
        now = int(seconds) + int(micros) / 1e6
        least, most = now - time.time(), now - sent
        if not least <= self._offset <= most:  # otherwise the known one is as accurate, and preserves the order of ids
            self._offset = least
        self._stale_at = time.monotonic() + FRESH
        return least, most
