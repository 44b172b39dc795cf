"""Who may do what: `Authorization: Bearer KEY` names a tenant, and a tenant sees its own generations only.

Keys are 256 random bits, so their plain SHA-256 is what is configured and kept (nothing to guess, nothing to steal).
"""

from __future__ import annotations

import hashlib
import hmac

from starlette.requests import HTTPConnection

from broker.errors import InvalidKey
from broker.service import OPEN_TENANT
from broker.settings import Settings


class Access:
    """With no keys configured everybody is the same tenant."""

    def __init__(self, settings: Settings) -> None:
        self._tenants = settings.tenants

    def tenant(self, connection: HTTPConnection) -> str:
        """InvalidKey where keys are configured and the caller shows none of them."""
        if not self._tenants:
            return OPEN_TENANT
        scheme, _, key = connection.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).hexdigest()
        for known, tenant in self._tenants.items():
            if scheme.lower() == "bearer" and hmac.compare_digest(known, digest):
                return tenant
        raise InvalidKey
