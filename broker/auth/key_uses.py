"""When each API key was last used. Gateways note it in memory, and write it to the queue's Redis once a minute."""

from __future__ import annotations

import asyncio
import logging
import math
import time

from broker.errors import StorageUnavailable
from broker.redis.client import Redis, Script
from broker.store import keys

PUT_HASH = Script("queue", "put_hash")
LOOK_EVERY = 5.0  # seconds: the first use is visible soon
WRITE_EVERY = 60.0  # seconds between two writes of one key's use
_KEPT_MS = 400 * 86_400_000
_NAME = 16  # digits of a hash that name its key in Redis
log = logging.getLogger("tokencast.broker")


class KeyUses:
    """Keys are given by their hashes. `run` must run in the background."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._noted: dict[str, float] = {}
        """Uses that are not written yet: key → unix seconds."""
        self._written_at: dict[str, float] = {}

    def note(self, digest: str) -> None:
        """Note that a key is used now."""
        self._noted[digest[:_NAME]] = time.time()

    async def run(self) -> None:
        """Write what was noted, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            await self.write()

    async def write(self) -> None:
        """Write what was noted, at most once a minute for each key."""
        last, now = self._written_at, time.monotonic()
        due = {key: at for key, at in self._noted.items() if now - last.get(key, -math.inf) >= WRITE_EVERY}
        if not due:
            return
        fields = [part for key, at in due.items() for part in (key, int(at))]
        try:
            await self._redis.run(PUT_HASH, (keys.KEY_USES,), (_KEPT_MS, *fields))
        except StorageUnavailable:
            log.debug("uses of keys not written")
            return
        for key, at in due.items():
            last[key] = now
            if self._noted[key] == at:
                del self._noted[key]

    async def last(self, digest: str) -> float | None:
        """Return when a key was last used at any gateway (unix seconds); None if it was not. Raises
        StorageUnavailable."""
        found = await self._redis.execute("HGET", keys.KEY_USES, digest[:_NAME])
        written, noted = None if found is None else float(found), self._noted.get(digest[:_NAME])
        return max((at for at in (written, noted) if at is not None), default=None)
