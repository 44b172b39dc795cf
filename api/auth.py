"""Access control: `Authorization: Bearer KEY` identifies a tenant, and a tenant sees its own generations only.

Keys are 256 random bits, so their plain SHA-256 is configured and stored: keys cannot be guessed, and hashes are of no
use to a thief. A `?token=` (`auth/stream_tokens.py`) allows reading one generation; routes that need a tenant do not
accept it.
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
    """The tenant that reads a generation, and when its access expires (unix seconds, by this machine's clock)."""

    tenant: str
    until: float | None = None


class Access:
    """Identifies tenants. If no keys are configured, all callers are the same tenant."""

    def __init__(self, settings: Settings, tokens: Tokens) -> None:
        self._tenants = settings.tenants
        self._names = frozenset(self._tenants.values()) or {OPEN_TENANT}
        self._tokens = tokens
        self.subscribers = SubscriberQuotas(settings)

    def tenant(self, connection: HTTPConnection) -> str:
        """Return the caller's tenant. InvalidKey if keys are configured and the caller presents none of them."""
        if not self._tenants:
            return OPEN_TENANT
        key = _bearer(connection)
        digest = hashlib.sha256(key.encode()).hexdigest()
        for known, tenant in self._tenants.items():
            if key and hmac.compare_digest(known, digest):
                return tenant
        raise InvalidKey

    async def reader(self, connection: HTTPConnection, gid: str) -> ReadAccess:
        """Authorise reading a generation, by key, or by a token for this generation if no key is presented.

        A token is checked even if no keys are configured, so that a page meets its expiry in development already.
        InvalidKey, InvalidToken; GenerationNotFound with the token of another generation, as for another tenant's.
        """
        text = text_of(connection, "token")
        if not text or _bearer(connection):
            return ReadAccess(self.tenant(connection))
        token = await self._tokens.check(text)
        if token.tenant not in self._names:
            raise InvalidToken  # its tenant's keys were removed
        if token.gid != gid:
            raise GenerationNotFound
        return ReadAccess(token.tenant, self._tokens.clock.here(token.expires_at))


def _bearer(connection: HTTPConnection) -> str:
    """Return the presented key; "" if there is none."""
    scheme, _, key = connection.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
