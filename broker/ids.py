"""Generation ids and cursors. Both are strings outside of this module, and both locate data without a lookup.

A generation id is ``gen_`` + 10 base32 digits of the creation time in ms + 2 of the shard tag + 22 random
ones (110 bits): 38 characters that sort by time and contain their shard. A cursor is ``<attempt>-<seq>``:
the id of an entry in the generation's log, which is also the SSE ``id:``.
"""

from __future__ import annotations

import re
import secrets
import zlib
from typing import NamedTuple

from broker.errors import GenerationNotFound, InvalidCursor

_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"
_VALUE = {digit: value for value, digit in enumerate(_DIGITS)}

ALL_TENANTS = "*"
"""In place of a tenant: all of them. No tenant can have this name."""

# Hash tags of the 32 shards, found by brute force over two-digit strings: each Redis Cluster slot is within 16 of
# the middle of one of 32 equal ranges, so any even number of masters gets an equal share ("00".."31" would put
# 15, 9 and 8 shards on three masters). Changing a tag makes the data of its shard unreachable.
SHARDS = (
    "10",
    "by",
    "25",
    "f9",
    "0n",
    "db",
    "3k",
    "gg",
    "8c",
    "06",
    "4g",
    "4v",
    "ed",
    "m1",
    "fa",
    "2m",
    "k4",
    "ca",
    "4h",
    "x5",
    "63",
    "ez",
    "2s",
    "yk",
    "z6",
    "6k",
    "ab",
    "5n",
    "c9",
    "0p",
    "gy",
    "40",
)
_SHARD_SET = frozenset(SHARDS)
_ID = re.compile(rf"gen_[{_DIGITS}]{{34}}")


def new_id(now_ms: int, tenant: str, idempotency_key: str | None = None) -> str:
    """Return a new id. With an idempotency key, the shard is derived from the key: its record and the generation are
    then in one Redis slot, and one script can create both."""
    if idempotency_key is None:
        shard = SHARDS[secrets.randbelow(len(SHARDS))]
    else:
        shard = idempotency_shard(tenant, idempotency_key)
    random = secrets.randbits(110)
    return "gen_" + _base32(now_ms, 10) + shard + _base32(random, 22)


def idempotency_shard(tenant: str, key: str) -> str:
    """Return the shard of an idempotency key."""
    return SHARDS[zlib.crc32(f"{tenant}\0{key}".encode()) % len(SHARDS)]


def check_id(gid: str) -> str:
    """Return the id. Raises GenerationNotFound if it is malformed, as for an unknown id: callers learn nothing more."""
    if not _ID.fullmatch(gid) or shard_of(gid) not in _SHARD_SET:
        raise GenerationNotFound
    return gid


def shard_of(gid: str) -> str:
    """Return the shard tag of an id."""
    return gid[14:16]


def created_ms(gid: str) -> int:
    """Return the creation time in an id, in ms since the epoch."""
    value = 0
    for digit in gid[4:14]:
        value = value * 32 + _VALUE[digit]
    return value


def _base32(value: int, width: int) -> str:
    digits: list[str] = []
    for _ in range(width):
        value, digit = divmod(value, 32)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))


class Cursor(NamedTuple):
    """A position in a log: the id of the last entry read. Compares in log order.

    An attempt is the time of its claim in ms times 1024, plus ten random bits; if the clock went back, the previous
    attempt plus one. It is less than 2^53 until the year 2248, so it is exact in Lua and JavaScript too.
    """

    attempt: int
    seq: int

    def __str__(self) -> str:
        return f"{self.attempt}-{self.seq}"


START = Cursor(0, 0)  # before the first event: `created` is 0-1
_CURSOR = re.compile(r"(\d{1,16})-(\d{1,10})")


def parse_cursor(text: str) -> Cursor:
    """Parse a cursor. Raises InvalidCursor unless it consists of two integers of at most 16 and 10 digits: Redis also
    accepts ``$`` and 2^64-1, and a reader that waits after one of those never receives an event."""
    match = _CURSOR.fullmatch(text)
    if match is None or not text.isascii():
        raise InvalidCursor
    return Cursor(int(match[1]), int(match[2]))


def entry_cursor(entry_id: bytes) -> Cursor:
    """Convert the id of a stream entry, as Redis returns it."""
    attempt, _, seq = entry_id.partition(b"-")
    return Cursor(int(attempt), int(seq))
