"""Parsing of TOKENCAST_API_KEYS: tenants and the hashes of their keys."""

from __future__ import annotations

_HEX = frozenset("0123456789abcdef")


def is_tenant(name: str) -> bool:
    """Return whether a name is a valid tenant."""
    return name.isalnum()


def tenants_of(entries: tuple[str, ...]) -> dict[str, str]:
    """Return SHA-256 of each key (hex) → its tenant. A ValueError does not contain the entry: it may be the key
    itself."""
    tenants: dict[str, str] = {}
    for number, entry in enumerate(entries, 1):
        tenant, _, digest = entry.partition(":")
        if not is_tenant(tenant) or len(digest) != 64 or not set(digest) <= _HEX:
            raise ValueError(
                f"entry {number} is not `tenant:sha256-of-key` (letters and digits, then 64 lower-case hexadecimal "
                "digits); create one with `tokencast key TENANT`"
            )
        if tenants.setdefault(digest, tenant) != tenant:
            raise ValueError(f"entry {number} has the key of another tenant")
    return tenants
