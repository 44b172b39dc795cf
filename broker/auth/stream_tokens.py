"""Stream tokens: the right to read one generation for some minutes, for who cannot present an API key.

An EventSource sets no header, so what it presents stands in its URL, and URLs end up in histories and in proxies'
logs. Hence a token that names its generation and its end, signed, so that any gateway can check it and none keeps it.

    tct1_<payload>.<signature>

The payload is `<expires, unix ms> <generation> <tenant>`, the signature the HMAC-SHA256 of all that stands before the
dot; both are base64url without padding.
"""

from __future__ import annotations

import hmac
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass

from broker.errors import InvalidToken, StorageUnavailable, TokenExpired
from broker.redis.client import Redis
from broker.redis.clock import RedisClock
from broker.store import keys

VERSION = "tct1_"
LONGEST = 600
"""Seconds that a token is good for at most, and by default: a URL is no place for anything that lasts."""
_KEY_KEPT = 30 * 86400  # seconds after the last token


@dataclass(frozen=True, slots=True)
class Token:
    """What a token says. `expires_at` is in unix seconds, to the ms."""

    gid: str
    tenant: str
    expires_at: float

    def signed(self, key: bytes) -> str:
        said = f"{round(self.expires_at * 1000)} {self.gid} {self.tenant}".encode()
        text = VERSION + _base64(said)
        return f"{text}.{_signature(key, text)}"


def verified(key: bytes, text: str) -> Token:
    """The token that was signed with this key, expired or not; InvalidToken for any other text."""
    said, _, signature = text.rpartition(".")
    if not hmac.compare_digest(_signature(key, said).encode(), signature.encode("utf-8", "replace")):
        raise InvalidToken
    payload = said.removeprefix(VERSION)
    if payload == said:
        raise InvalidToken  # ours, of another version
    expires, gid, tenant = urlsafe_b64decode(payload + "==").decode().split(" ", 2)
    return Token(gid, tenant, int(expires) / 1000)


class Tokens:
    """Makes and checks tokens. The signing key is TOKENCAST_SECRET, or a random one that the gateways share in the
    queue's Redis: if that loses it, the tokens made so far are worth nothing, and the next is signed with another."""

    def __init__(self, redis: Redis, secret: str | None) -> None:
        self._redis = redis
        self.clock = RedisClock(redis)
        self._secret = secret.encode() if secret else None
        self._known: bytes | None = None

    async def issue(self, gid: str, tenant: str, seconds: float = LONGEST) -> tuple[str, float]:
        """The token, and when it ends (unix seconds). Does not ask whether the generation exists."""
        token = Token(gid, tenant, round(await self.clock.now() + seconds, 3))
        return token.signed(self._secret or await self._shared_key()), token.expires_at

    async def check(self, text: str) -> Token:
        """InvalidToken, TokenExpired; StorageUnavailable where the key is in a Redis that was never reached."""
        key = self._secret or await self._newest_key()
        if key is None:
            raise InvalidToken
        token = verified(key, text)
        if token.expires_at <= await self.clock.now():
            raise TokenExpired
        return token

    async def _shared_key(self) -> bytes:
        """The one in Redis, there for a month from now on; made by whoever needs it first."""
        key = await self._redis.execute("GET", keys.SIGNING_KEY)
        if key is None:
            await self._redis.execute("SET", keys.SIGNING_KEY, secrets.token_hex(32), "NX", "EX", _KEY_KEPT)
            key = await self._redis.execute("GET", keys.SIGNING_KEY)
        else:
            await self._redis.execute("EXPIRE", keys.SIGNING_KEY, _KEY_KEPT)
        if key is None:
            raise StorageUnavailable
        self._known = key
        return key

    async def _newest_key(self) -> bytes | None:
        """Asked for each time, so that all gateways always agree; while Redis is away, the one known before."""
        try:
            self._known = await self._redis.execute("GET", keys.SIGNING_KEY)
        except StorageUnavailable:
            if self._known is None:
                raise
        return self._known


def _signature(key: bytes, text: str) -> str:
    return _base64(hmac.digest(key, text.encode("utf-8", "replace"), "sha256"))


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
