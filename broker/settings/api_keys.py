"""Parsing of TOKENCAST_API_KEYS: tenants, the hashes of their keys, and the roles of these."""

from __future__ import annotations

from typing import Literal, NamedTuple, cast, get_args

_HEX = frozenset("0123456789abcdef")

Role = Literal["tenant", "read", "operator"]
"""`tenant`: everything with the tenant's generations. `read`: only reading them. `operator`: everything, with the
generations of all tenants."""
ROLES: tuple[Role, ...] = get_args(Role)


class ApiKey(NamedTuple):
    """What a key gives access to."""

    tenant: str
    role: Role = "tenant"

    def entry(self, digest: str) -> str:
        """Return its entry of TOKENCAST_API_KEYS. `digest`: SHA-256 of the key (hex)."""
        return f"{self.tenant}:{digest}" + ("" if self.role == "tenant" else f":{self.role}")


def is_tenant(name: str) -> bool:
    """Return whether a name is a valid tenant."""
    return name.isalnum()


def keys_of(entries: tuple[str, ...]) -> dict[str, ApiKey]:
    """Return SHA-256 of each key (hex) → what it gives access to. A ValueError does not contain the entry, which may be
    the key itself."""
    keys: dict[str, ApiKey] = {}
    for number, entry in enumerate(entries, 1):
        tenant, _, rest = entry.partition(":")
        digest, colon, role = rest.partition(":")
        if not is_tenant(tenant) or len(digest) != 64 or not set(digest) <= _HEX:
            raise ValueError(
                f"entry {number} is not `tenant:sha256-of-key` (letters and digits, then 64 lower-case hexadecimal "
                "digits); create one with `tokencast key TENANT`"
            )
        if colon and role not in ROLES[1:]:
            raise ValueError(f"entry {number} has a role other than {' and '.join(ROLES[1:])}")
        key = ApiKey(tenant, cast(Role, role or "tenant"))
        if keys.setdefault(digest, key) != key:
            raise ValueError(f"entry {number} has the key of another tenant, or the same key with another role")
    return keys
