"""Tenants and the hashes of their keys, as TOKENCAST_API_KEYS has them."""

from __future__ import annotations

_HEX = frozenset("0123456789abcdef")


def is_tenant(name: str) -> bool:
    return name.isalnum()


def tenants_of(entries: tuple[str, ...]) -> dict[str, str]:
    """SHA-256 of each key (hex) → its tenant. ValueError, without the entry: it may be the key itself."""
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
