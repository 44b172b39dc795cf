"""Stream tokens: permission to read one generation for some minutes, for clients that cannot send an API key.

An EventSource cannot set headers, so its credential is part of the URL, and URLs are stored in histories and in logs of
proxies. A token is therefore limited to one generation and to ten minutes. It is a JSON Web Token (RFC 7519), signed
with HS256, so any gateway can verify it and none has to store it.

    {"sub": "anna", "gen": "gen_…", "scope": "read", "exp": 1763790600.123}

- `sub`: the tenant, as in TOKENCAST_API_KEYS; `default` for a gateway without keys
- `gen`: the id of the generation
- `scope`: always `read`
- `exp`: the end, in unix seconds; at most ten minutes from now

A backend that has TOKENCAST_SECRET can create tokens itself, without a request to the gateway. With PyJWT:

    claims = {"sub": "anna", "gen": gid, "scope": "read", "exp": time.time() + 600}
    token = jwt.encode(claims, TOKENCAST_SECRET, "HS256")

The key is the secret's UTF-8 text; at least 32 bytes are recommended (RFC 7518 §3.2). `nbf` is honoured if present, a
token with an `aud` is for another service and refused, and other claims are ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import jwt
import msgspec
from jwt.algorithms import HMACAlgorithm

from broker.auth.signing_key import SigningKey
from broker.errors import InvalidToken, TokenExpired
from broker.redis.client import Redis
from broker.redis.clock import RedisClock

LONGEST = 600
"""Maximum lifetime of a token in seconds, and the default: a URL must not contain a lasting credential."""
LEEWAY = 60
"""Seconds by which the clock of a backend that creates tokens can be ahead of Redis's."""
_ALGORITHM = "HS256"
_MAX_LENGTH = 2048  # characters; a token has about 200, plus the tenant's name
_FORM = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)  # PyJWT also accepts padding


class _Claims(msgspec.Struct, omit_defaults=True):
    sub: str
    gen: str
    scope: Literal["read"]
    exp: float
    nbf: float = 0.0
    aud: Any = None


class _HS256(HMACAlgorithm):
    """HMAC with SHA-256 and any key: PyJWT warns of keys shorter than 32 bytes at each call, and refuses some texts as
    a key; a TOKENCAST_SECRET has at least 16 characters."""

    def check_key_length(self, key: bytes) -> None:
        return None

    def prepare_key(self, key: str | bytes) -> bytes:
        return key.encode() if isinstance(key, str) else key


_JWS = jwt.PyJWS(algorithms=[])
_JWS.register_algorithm(_ALGORITHM, _HS256(HMACAlgorithm.SHA256))


@dataclass(frozen=True, slots=True)
class Token:
    """The content of a token. `expires_at` is in unix seconds."""

    gid: str
    tenant: str
    expires_at: float

    def encode(self, key: bytes) -> str:
        """Return the signed token."""
        claims = _Claims(sub=self.tenant, gen=self.gid, scope="read", exp=self.expires_at)
        return _JWS.encode(msgspec.json.encode(claims), key, _ALGORITHM)  # pyright: ignore[reportUnknownMemberType]


class Tokens:
    """Creates and verifies tokens. Times are compared by Redis's clock, which all gateways share."""

    def __init__(self, redis: Redis, secret: str | None) -> None:
        self.clock = RedisClock(redis)
        self._key = SigningKey(redis, secret)

    async def issue(self, gid: str, tenant: str, seconds: float = LONGEST) -> tuple[str, float]:
        """Return a token and its end (unix seconds). Does not check that the generation exists."""
        token = Token(gid, tenant, round(await self.clock.now() + seconds, 3))
        return token.encode(await self._key.for_signing()), token.expires_at

    async def check(self, text: str) -> Token:
        """Return the content of a valid token. Raises InvalidToken or TokenExpired; StorageUnavailable if the key is in
        a Redis that has never responded."""
        key = await self._key.for_verification()
        if key is None:
            raise InvalidToken
        return decode(text, key, await self.clock.now())


def decode(text: str, key: bytes, now: float) -> Token:
    """Return the content of a token that was signed with this key and is valid now. Raises InvalidToken or
    TokenExpired."""
    if len(text) > _MAX_LENGTH or not _FORM.fullmatch(text):
        raise InvalidToken
    try:
        signed: bytes = _JWS.decode(text, key, [_ALGORITHM])  # pyright: ignore[reportUnknownMemberType]
        claims = _DECODER.decode(signed)
    except (jwt.InvalidTokenError, msgspec.DecodeError, ValueError, RecursionError):
        raise InvalidToken from None
    if claims.aud is not None or claims.nbf > now + LEEWAY or claims.exp > now + LONGEST + LEEWAY:
        raise InvalidToken
    if claims.exp <= now:
        raise TokenExpired
    return Token(claims.gen, claims.sub, claims.exp)


_DECODER = msgspec.json.Decoder(_Claims)
