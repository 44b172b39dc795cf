"""Generation ids and cursors: both are strings everywhere, and both say where to look.

A generation id is ``gen_`` + 10 base32 digits of the creation time in ms + 2 of the shard tag + 22 random
ones (110 bits): 38 characters that sort by time and carry their own shard. A cursor is
``<attempt>-<seq>``: the id of an entry in the generation's log, so also an SSE ``id:``.
"""

from __future__ import annotations

import re
import secrets
import zlib
from typing import NamedTuple

from broker.errors import GenerationNotFound, InvalidCursor

_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"
_VALUE = {digit: value for value, digit in enumerate(_DIGITS)}

# Hash tags of the 32 shards, found by brute force over two-digit strings: their Redis Cluster slots lie
# within 16 of the middle of 32 equal ranges, so that any even number of masters gets an even share
# ("00".."31" would put 15, 9 and 8 shards on three masters). Changing one loses the data behind it.
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
    """A new id. With an idempotency key the shard follows from it, so that record and generation share
    one Redis slot and one script can create both."""
    if idempotency_key is None:
        shard = SHARDS[secrets.randbelow(len(SHARDS))]
    else:
        shard = idempotency_shard(tenant, idempotency_key)
    random = secrets.randbits(110)
    return "gen_" + _base32(now_ms, 10) + shard + _base32(random, 22)


def idempotency_shard(tenant: str, key: str) -> str:
    return SHARDS[zlib.crc32(f"{tenant}\0{key}".encode()) % len(SHARDS)]


def check_id(gid: str) -> str:
    """The id itself; GenerationNotFound if it cannot be one (which is all a caller may learn)."""
    if not _ID.fullmatch(gid) or shard_of(gid) not in _SHARD_SET:
        raise GenerationNotFound
    return gid


def shard_of(gid: str) -> str:
    return gid[14:16]


def created_ms(gid: str) -> int:
    """Creation time, ms since the epoch, read from the id."""
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
    """A position in a log: the id of the last entry that was seen. Compares in log order.

    An attempt is below 2^53 until the year 2248, so it is exact in Lua and JavaScript too.
    """

    attempt: int
    seq: int

    def __str__(self) -> str:
        return f"{self.attempt}-{self.seq}"


START = Cursor(0, 0)  # before everything: `created` is 0-1
_CURSOR = re.compile(r"(\d{1,16})-(\d{1,10})")


def parse_cursor(text: str) -> Cursor:
    """InvalidCursor unless the text is two whole numbers of at most 16 and 10 digits: Redis itself also
    takes ``$`` and 2^64-1, and a reader that waits behind those waits for ever."""
    match = _CURSOR.fullmatch(text)
    if match is None or not text.isascii():
        raise InvalidCursor
    return Cursor(int(match[1]), int(match[2]))


def entry_cursor(entry_id: bytes) -> Cursor:
    """The cursor of a stream entry's id, as Redis returns it."""
    attempt, _, seq = entry_id.partition(b"-")
    return Cursor(int(attempt), int(seq))
