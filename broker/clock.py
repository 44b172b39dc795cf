"""What time it is by Redis's clock: the only one that all processes share.

The clock of one machine may be wrong. Whatever is compared with what a script wrote, or with what another process
wrote, goes by Redis: ids and `created_at`, presence, the time of a retry.
"""

from __future__ import annotations

import time

from broker.connection import Redis

FRESH = 30.0  # seconds for which an answer of Redis holds: after that this machine's clock may have been set


class RedisClock:
    """This machine's clock, corrected by what Redis last said."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._ahead = 0.0
        self._asked = float("-inf")

    async def now_ms(self) -> int:
        """Milliseconds since the epoch, never ahead of Redis's own: what comes of it there is never earlier.
        StorageUnavailable where Redis must be asked and is away."""
        if time.monotonic() - self._asked > FRESH:
            await self.ask()
        return int((time.time() + self._ahead) * 1000)

    async def ask(self) -> tuple[float, float]:
        """By how many seconds Redis's clock is ahead of this machine's: at least, and at most, since the answer
        takes its time. Negative where it is behind. StorageUnavailable."""
        sent = time.time()
        seconds, micros = await self._redis.execute("TIME")
        now = int(seconds) + int(micros) / 1e6
        least, most = now - time.time(), now - sent
        if not least <= self._ahead <= most:  # else what is known is as good, and keeps the order of ids
            self._ahead = least
        self._asked = time.monotonic()
        return least, most
