"""Who may do what: `Authorization: Bearer KEY` names a tenant, and a tenant sees its own generations only.

Keys are 256 random bits, so their plain SHA-256 is what is configured and kept (nothing to guess, nothing to steal).
A `?token=` (`auth/stream_tokens.py`) opens one generation for reading, and no route that asks for a tenant takes it.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from starlette.requests import HTTPConnection

from api.query import text_of
from api.quotas import SubscriberQuotas
from broker.auth.stream_tokens import Tokens
from broker.errors import GenerationNotFound, InvalidKey, InvalidToken
from broker.queue.quotas import OPEN_TENANT
from broker.settings.settings import Settings


@dataclass(frozen=True, slots=True)
class ReadAccess:
    """Who reads a generation, and when the right to do so ends (unix seconds, by this machine's clock)."""

    tenant: str
    until: float | None = None


class Access:
    """With no keys configured everybody is the same tenant."""

    def __init__(self, settings: Settings, tokens: Tokens) -> None:
        self._tenants = settings.tenants
        self._names = frozenset(self._tenants.values()) or {OPEN_TENANT}
        self._tokens = tokens
        self.subscribers = SubscriberQuotas(settings)

    def tenant(self, connection: HTTPConnection) -> str:
        """InvalidKey where keys are configured and the caller shows none of them."""
        if not self._tenants:
            return OPEN_TENANT
        key = _bearer(connection)
        digest = hashlib.sha256(key.encode()).hexdigest()
        for known, tenant in self._tenants.items():
            if key and hmac.compare_digest(known, digest):
                return tenant
        raise InvalidKey

    async def reader(self, connection: HTTPConnection, gid: str) -> ReadAccess:
        """By key, or by a token for this generation where no key is shown. A token is held to what it says even
        where no keys are configured, so that a page meets its end there already. InvalidKey, InvalidToken;
        GenerationNotFound with the token of another one, as if it were another tenant's."""
        text = text_of(connection, "token")
        if not text or _bearer(connection):
            return ReadAccess(self.tenant(connection))
        token = await self._tokens.check(text)
        if token.tenant not in self._names:
            raise InvalidToken  # its tenant's keys were taken away
        if token.gid != gid:
            raise GenerationNotFound
        return ReadAccess(token.tenant, self._tokens.clock.to_local(token.expires_at))


def _bearer(connection: HTTPConnection) -> str:
    """The key that is shown; empty where none is."""
    scheme, _, key = connection.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
