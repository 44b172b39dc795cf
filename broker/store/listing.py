"""Lists a tenant's generations, newest first, and counts them by status, from its indexes: one set per shard.

Index entries outlive their generations. Each call that finds expired members removes them, in bulk and in short
scripts: 100,000 members cost less than half a second in total, and no other command waits for more than a few ms.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

from broker.errors import StorageUnavailable
from broker.events import STATUSES
from broker.ids import SHARDS, created_ms, shard_of
from broker.redis.client import Redis
from broker.redis.commands import Command
from broker.store import commands, keys

LIST_BYTES = 512 * 1024
"""Maximum bytes of the rows of a page; a page that reaches it ends early."""
LIST_ROUNDS = 50
"""Maximum reads per page while expired members are skipped."""
FIRST_ROWS = 16  # rows of the first read, before their length is known
ROW_BYTES = 500  # bytes of a row without data of callers and upstreams
LOOK = 200  # members of an index that one call of prune.lua checks: at most a millisecond
PRUNE_EVERY = 5.0  # seconds; dashboards request the counts every two seconds
SAMPLE = 8  # members that `counts` checks in each shard
SHARDS_AT_ONCE = 8  # calls of prune.lua in one pipeline, which Redis runs without interruption

Row = tuple[str, Sequence[bytes | None]]
"""A generation's id, and the requested fields of its meta."""


class Listing:
    """`fields`: the fields of a generation's meta to return; they must include `st`."""

    def __init__(self, redis: Redis, fields: Sequence[str]) -> None:
        self.redis = redis
        self._fields = fields
        self._status = fields.index("st")
        self._prune_at: dict[str, float] = {}  # by tenant; bounded by the number of configured keys

    async def page(self, tenant: str, status: str | None, limit: int, after: str | None) -> tuple[list[Row], bool]:
        """Return rows, newest first, and whether there are more. `after`: id of the last row of the previous page.

        Work and bytes are bounded: a page ends before `limit` if its rows reach LIST_BYTES, or if expired members
        remain after LIST_ROUNDS reads. Then there are more, even after an empty page: the expired members are removed,
        so the same call makes progress."""
        found: list[Row] = []
        room = LIST_BYTES
        for _ in range(LIST_ROUNDS):
            page, more = await self._ids(tenant, status, limit - len(found), after)
            rows, looked_at, size = await self._still_there(page, room)
            if len(rows) < looked_at:
                await self._prune(SHARDS, tenant, status, LOOK, created_ms(after) if after else None)
            found += rows
            room -= size
            more = more or looked_at < len(page)
            if not more or len(found) == limit or room <= 0:
                return found, more
            after = page[looked_at - 1]
        return found, True

    async def _ids(self, tenant: str, status: str | None, limit: int, after: str | None) -> tuple[list[str], bool]:
        ranges = await self.redis.pipeline(
            [
                command
                for shard in SHARDS
                for command in _ranges(keys.index(shard, tenant, status), shard, after, limit + 1)
            ]
        )
        gids = sorted((member.decode() for members in ranges for member in members), reverse=True)
        if after:
            gids = [gid for gid in gids if gid < after]
        return gids[:limit], len(gids) > limit

    async def _still_there(self, gids: Sequence[str], room: int) -> tuple[list[Row], int, int]:
        """Return the rows of a page that can still be read (by the rules of `state`), up to about `room` bytes; the
        number of ids checked; and the bytes of the rows."""
        found: list[Row] = []
        looked_at = size = 0
        largest = LIST_BYTES // FIRST_ROWS
        while looked_at < len(gids) and size < room:
            some = gids[looked_at : looked_at + max(1, (room - size) // largest)]
            replies = await self.redis.pipeline(
                [cmd for gid in some for cmd in (("HMGET", keys.meta(gid), *self._fields), ("EXISTS", keys.log(gid)))]
            )
            largest = ROW_BYTES
            for gid, fields, has_log in zip(some, replies[::2], replies[1::2], strict=True):
                looked_at += 1
                row = ROW_BYTES + sum(len(field or b"") for field in fields)
                largest = max(largest, row)
                if has_log and fields[self._status] not in (None, b"deleted"):
                    found.append((gid, fields))
                    size += row
                if size >= room:
                    break
        return found, looked_at, size

    async def _prune_some(self, tenant: str) -> None:
        """Check a random sample of each shard, and more members of shards where over a quarter of the sample has
        expired."""
        removed = await self._prune(SHARDS, tenant, None, SAMPLE)
        many = [shard for shard, count in zip(SHARDS, removed, strict=True) if count > SAMPLE // 4]
        await self._prune(many, tenant, None, LOOK)

    async def _prune(
        self, shards: Sequence[str], tenant: str, status: str | None, count: int, newest: int | None = -1
    ) -> list[int]:
        """Remove unreadable generations from the indexes, among `count` members of each shard: those from `newest` on
        (ms; None: from the very newest), or random ones (-1). Return the number removed from each shard; 0 while Redis
        rejects writes, which must not prevent reads."""
        score = "+inf" if newest is None else newest if newest >= 0 else ""
        removed: list[int] = []
        for at in range(0, len(shards), SHARDS_AT_ONCE):
            some = shards[at : at + SHARDS_AT_ONCE]
            try:
                removed += await commands.prune(self.redis, some, tenant, status, count, score)
            except StorageUnavailable:
                removed += [0] * len(some)
        return removed

    # --- counts ---

    async def counts(self, tenant: str) -> dict[str, int]:
        """Return the number of the tenant's generations by status. It may include expired ones: every PRUNE_EVERY
        seconds a random sample is checked and expired members are removed until they are less than about a quarter.
        Generations that were lost before they ended are removed as well."""
        if time.monotonic() >= self._prune_at.get(tenant, 0.0):
            self._prune_at[tenant] = time.monotonic() + PRUNE_EVERY
            await self._prune_some(tenant)
            await self._unlist_lost(tenant)
        places = [(status, shard) for status in STATUSES for shard in SHARDS]
        found = await self.redis.pipeline([("ZCARD", keys.index(shard, tenant, status)) for status, shard in places])
        counts: dict[str, int] = {}
        for (status, _), count in zip(places, found, strict=True):
            counts[status] = counts.get(status, 0) + int(count)
        return counts

    async def _unlist_lost(self, tenant: str) -> None:
        """Remove generations that expired before they ended, because no process ran for a week: they count as waiting
        or running."""
        with suppress(StorageUnavailable):  # a Redis that rejects writes must not prevent reads
            await commands.unlist(self.redis, SHARDS, tenant)


def _ranges(index: str, shard: str, after: str | None, count: int) -> list[Command]:
    """Return the commands that read the newest `count` members after `after`. Ids sort by time, then by shard: among
    ids of the same ms, all those of another shard sort on one side of `after`. Of its own shard all ids of that ms are
    read; their number is small."""
    if after is None:
        return [("ZREVRANGEBYSCORE", index, "+inf", "-inf", "LIMIT", 0, count)]
    ms, own = created_ms(after), shard_of(after)
    newest = ms if shard < own else f"({ms}"
    behind = ("ZREVRANGEBYSCORE", index, newest, "-inf", "LIMIT", 0, count)
    return [("ZREVRANGEBYSCORE", index, ms, ms), behind] if shard == own else [behind]
