"""What time it is by Redis's clock: the only one that all processes share.

The clock of one machine may be wrong. Whatever is compared with what a script wrote, or with what another process
wrote, goes by Redis: ids and `created_at`, the end of a token, presence, the time of a retry.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from broker.errors import StorageUnavailable
from broker.redis.client import Redis

AGAIN = 1.0  # seconds until it is asked again where it did not answer
FRESH = 30.0  # seconds for which an answer of Redis holds: after that this machine's clock may have been set


class RedisClock:
    """This machine's clock, corrected by what Redis last said."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._ahead = 0.0
        self._asking: asyncio.Task[None] | None = None
        self._stale_at = float("-inf")

    async def now(self) -> float:
        """Unix seconds, never ahead of Redis's own: what comes of it there is never earlier. By what it said before
        where it is away. Concurrent calls share one question, and its failure: they wait no longer than one does."""
        if time.monotonic() > self._stale_at:
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._refresh())
            await asyncio.shield(self._asking)
        return time.time() + self._ahead

    async def _refresh(self) -> None:
        with suppress(StorageUnavailable):
            await self.ask()
            return
        self._stale_at = time.monotonic() + AGAIN

    def last(self) -> float:
        """Unix seconds, by what Redis said last: for who must not wait, and loses nothing if it is an hour old."""
        return time.time() + self._ahead

    def here(self, moment: float) -> float:
        """When that is by this machine's clock."""
        return moment - self._ahead

    async def ask(self) -> tuple[float, float]:
        """By how many seconds Redis's clock is ahead of this machine's: at least, and at most, since the answer
        takes its time. Negative where it is behind. StorageUnavailable."""
        sent = time.time()
        seconds, micros = await self._redis.execute("TIME")
        now = int(seconds) + int(micros) / 1e6
        least, most = now - time.time(), now - sent
        if not least <= self._ahead <= most:  # else what is known is as good, and keeps the order of ids
            self._ahead = least
        self._stale_at = time.monotonic() + FRESH
        return least, most
