"""Access control: `Authorization: Bearer KEY` identifies a tenant, and a tenant sees its own generations only. A key
with the role `operator` sees those of all tenants, one with the role `read` changes nothing.

Keys are 256 random bits, so their plain SHA-256 is configured and stored: keys cannot be guessed, and hashes are of no
use to a thief. A `?token=` (`auth/stream_tokens.py`) allows reading one generation; routes that need a tenant do not
accept it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import HTTPConnection

from api.keys import AccessEnd, LiveKeys
from api.query import text_of
from api.quotas import SubscriberQuotas
from broker.auth.stream_tokens import Tokens
from broker.errors import GenerationNotFound, InvalidRequest, InvalidToken, OperatorRequired, ReadOnlyKey
from broker.ids import ALL_TENANTS
from broker.queue.quotas import OPEN_TENANT
from broker.settings.api_keys import ApiKey, is_tenant
from broker.settings.settings import Settings

_OPEN = ApiKey(OPEN_TENANT, "operator")
"""What every caller may do if no keys are configured."""
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_SCOPE_KEY = "tokencast.key"
"""Where a connection's scope holds the key that was found for it: a request asks several times."""


@dataclass(frozen=True, slots=True)
class ReadAccess:
    """Access to a generation, or to those of a tenant."""

    tenant: str
    """The tenant of the generations; ALL_TENANTS for all."""
    until: AccessEnd | None = None
    """End of the access, by this machine's clock; None: it never ends."""
    caller: str = ""
    """The tenant whose subscriber it is; "": the same."""


class Access:
    """Identifies tenants. If no keys are configured, all callers are the same tenant."""

    def __init__(
        self, settings: Settings, keys: LiveKeys, tokens: Tokens, owner: Callable[[str], Awaitable[str | None]]
    ) -> None:
        """`owner`: returns the tenant of a generation, None if it is unknown."""
        self._keys = keys
        self._tokens = tokens
        self._owner = owner
        self.subscribers = SubscriberQuotas(settings)

    def tenant(self, connection: HTTPConnection) -> str:
        """Return the caller's tenant. InvalidKey if keys are configured and the caller presents none of them;
        ReadOnlyKey if the request may change something and the key may not."""
        return self._key(connection).tenant

    def key(self, connection: HTTPConnection) -> ApiKey:
        """Return what the caller's key gives access to. InvalidKey."""
        return self._key(connection)

    def require_operator(self, connection: HTTPConnection) -> None:
        """InvalidKey, or OperatorRequired without the role; everybody has it if no keys are configured."""
        if self._key(connection).role != "operator":
            raise OperatorRequired

    def names_tenants(self, connection: HTTPConnection) -> bool:
        """Return whether the caller sees generations of several tenants, so that each must be named."""
        return bool(self._keys and _bearer(connection)) and self._key(connection).role == "operator"

    def tenants(self, connection: HTTPConnection) -> list[str]:
        """Return the tenants whose generations the caller sees, as far as they have keys."""
        return sorted(self._keys.tenants) if self.names_tenants(connection) else [self._key(connection).tenant]

    def scope(self, connection: HTTPConnection) -> str:
        """Return the tenant whose generations a list shows; for an operator ALL_TENANTS, or the tenant in `?tenant=`.
        OperatorRequired if anybody else names another tenant."""
        key, named = self._key(connection), text_of(connection, "tenant")
        if key.role == "operator" and self._keys:
            return named or ALL_TENANTS
        if named not in (None, key.tenant):
            raise OperatorRequired
        return key.tenant

    def one_tenant(self, connection: HTTPConnection, named: str | None) -> str:
        """Return the tenant that a request for a single tenant names, by default the caller's. OperatorRequired if
        anybody but an operator names another one; InvalidRequest if the name is not valid."""
        key = self._key(connection)
        if named is None or named == key.tenant:
            return key.tenant
        if key.role != "operator" or not self._keys:
            raise OperatorRequired
        if not is_tenant(named):
            raise InvalidRequest("`tenant` must be the name of a tenant.", param="tenant")
        return named

    async def owner(self, connection: HTTPConnection, gid: str) -> str:
        """Return the tenant as which the caller uses a generation: an operator as its own tenant, which costs a round
        trip, and anybody else as the caller's."""
        tenant = self.tenant(connection)
        return (await self._owner(gid) or tenant) if self.names_tenants(connection) else tenant

    async def reader(self, connection: HTTPConnection, gid: str) -> ReadAccess:
        """Authorise reading a generation, by key, or by a token for this generation if no key is presented.

        A token is checked even if no keys are configured, so that a page meets its expiry in development already.
        InvalidKey, InvalidToken; GenerationNotFound with the token of another generation, as for another tenant's.
        """
        text = text_of(connection, "token")
        if not text or _bearer(connection):
            owner = await self.owner(connection, gid)
            return ReadAccess(owner, self.end(connection), caller=self.tenant(connection))
        token = await self._tokens.check(text)
        if token.tenant not in (self._keys.tenants or {OPEN_TENANT}):
            raise InvalidToken  # its tenant's keys were removed
        if token.gid != gid:
            raise GenerationNotFound
        return ReadAccess(token.tenant, AccessEnd(self._tokens.clock.to_local(token.expires_at)))

    def end(self, connection: HTTPConnection) -> AccessEnd | None:
        """Return when the access by the caller's key ends; None if no keys are configured."""
        return self._keys.end_of(_digest(connection)) if self._keys else None

    def _key(self, connection: HTTPConnection) -> ApiKey:
        if not self._keys:
            return _OPEN
        key: ApiKey | None = connection.scope.get(_SCOPE_KEY)
        if key is None:
            key = connection.scope[_SCOPE_KEY] = self._keys.find(_digest(connection))
        if key.role == "read" and connection.scope.get("method") not in _READING:
            raise ReadOnlyKey
        return key


def _digest(connection: HTTPConnection) -> str:
    """Return the SHA-256 of the presented key (hex); "" if there is none."""
    presented = _bearer(connection)
    return hashlib.sha256(presented.encode()).hexdigest() if presented else ""


def _bearer(connection: HTTPConnection) -> str:
    """Return the presented key; "" if there is none."""
    scheme, _, key = connection.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
