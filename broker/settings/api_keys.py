"""Parsing of TOKENCAST_API_KEYS: tenants, the hashes of their keys, and the roles and ends of these."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple, cast, get_args

API_KEYS = "TOKENCAST_API_KEYS"
EXPIRES = "expires="
_HEX = frozenset("0123456789abcdef")

Role = Literal["tenant", "read", "operator"]
"""`tenant`: everything with the tenant's generations. `read`: only reading them. `operator`: everything, with the
generations of all tenants."""
ROLES: tuple[Role, ...] = get_args(Role)


class ApiKey(NamedTuple):
    """What a key gives access to."""

    tenant: str
    role: Role = "tenant"
    expires: float | None = None
    """Unix seconds from which on it is not valid; None: never."""

    def entry(self, digest: str) -> str:
        """Return its entry of TOKENCAST_API_KEYS. `digest`: SHA-256 of the key (hex)."""
        role = "" if self.role == "tenant" else f":{self.role}"
        return f"{self.tenant}:{digest}{role}" + (
            "" if self.expires is None else f":{EXPIRES}{format_end(self.expires)}"
        )


def is_tenant(name: str) -> bool:
    """Return whether a name is a valid tenant."""
    return name.isalnum()


def split_entries(text: str) -> tuple[str, ...]:
    """Split a comma-separated list. In a file, the entries can also be on separate lines."""
    return tuple(part.strip() for part in text.replace("\n", ",").split(",") if part.strip())


def parse_end(text: str) -> float:
    """Return the end of a key's validity in unix seconds. A date means the end of that day, UTC; a time without an
    offset is UTC. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    if len(text) == len("2027-01-31"):
        moment += timedelta(days=1)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def format_end(expires: float) -> str:
    """Return the shortest text that `parse_end` reads."""
    moment = datetime.fromtimestamp(expires, UTC)
    if (moment.hour, moment.minute, moment.second, moment.microsecond) == (0, 0, 0, 0):
        return (moment - timedelta(days=1)).date().isoformat()
    return moment.replace(tzinfo=None).isoformat() + "Z"


def keys_of(entries: tuple[str, ...]) -> dict[str, ApiKey]:
    """Return SHA-256 of each key (hex) → what it gives access to. A ValueError does not contain the entry, which may be
    the key itself."""
    keys: dict[str, ApiKey] = {}
    for number, entry in enumerate(entries, 1):
        tenant, _, rest = entry.partition(":")
        rest, until, end = rest.partition(f":{EXPIRES}")
        digest, colon, role = rest.partition(":")
        if not is_tenant(tenant) or len(digest) != 64 or not set(digest) <= _HEX:
            raise ValueError(
                f"entry {number} is not `tenant:sha256-of-key` (letters and digits, then 64 lower-case hexadecimal "
                "digits); create one with `tokencast key TENANT`"
            )
        if colon and role not in ROLES[1:]:
            raise ValueError(f"entry {number} has a role other than {' and '.join(ROLES[1:])}")
        key = ApiKey(tenant, cast(Role, role or "tenant"), _end(number, end) if until else None)
        if keys.setdefault(digest, key) != key:
            raise ValueError(f"entry {number} has the key of another tenant, or the same key with another role or end")
    return keys


def _end(number: int, text: str) -> float:
    try:
        return parse_end(text)
    except (ValueError, OverflowError):
        raise ValueError(
            f"entry {number} has an end that is not a date or a time, as in `expires=2027-01-31`"
        ) from None
