"""The key that signs stream tokens: TOKENCAST_SECRET, or a random key that all gateways share in the queue's Redis."""

from __future__ import annotations

import secrets

from broker.errors import StorageUnavailable
from broker.redis.client import Redis
from broker.store import keys

_KEPT = 30 * 86400  # seconds after the last token


class SigningKey:
    """Without a secret, the first token creates the key in Redis. If Redis loses it, all tokens become invalid, and the
    next token creates another key."""

    def __init__(self, redis: Redis, secret: str | None) -> None:
        self._redis = redis
        self._secret = secret.encode() if secret else None
        self._last: bytes | None = None

    async def for_signing(self) -> bytes:
        """Return the key, created if necessary and kept for another month. Raises StorageUnavailable."""
        return self._secret or await self._shared()

    async def for_verification(self) -> bytes | None:
        """Return the key; None if no token has been signed. Raises StorageUnavailable if Redis has never responded.

        It is read from Redis each time, so all gateways always agree; while Redis is unavailable, the last one is used.
        """
        if self._secret:
            return self._secret
        try:
            self._last = await self._redis.execute("GET", keys.SIGNING_KEY)
        except StorageUnavailable:
            if self._last is None:
                raise
        return self._last

    async def _shared(self) -> bytes:
        key = await self._redis.execute("GET", keys.SIGNING_KEY)
        if key is None:
            await self._redis.execute("SET", keys.SIGNING_KEY, secrets.token_hex(32), "NX", "EX", _KEPT)
            key = await self._redis.execute("GET", keys.SIGNING_KEY)
        else:
            await self._redis.execute("EXPIRE", keys.SIGNING_KEY, _KEPT)
        if key is None:
            raise StorageUnavailable
        self._last = key
        return key
