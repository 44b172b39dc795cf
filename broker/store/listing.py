"""Lists a tenant's generations, newest first, and counts them by status, from its indexes: one set per shard.

A page reads the smallest index that contains everything the filters ask for, and checks the other conditions on the
rows.

Index entries outlive their generations. Each call that finds expired members removes them, in bulk and in short
scripts: 100,000 members cost less than half a second in total, and no other command waits for more than a few ms.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from broker.errors import StorageUnavailable
from broker.events import STATUSES
from broker.ids import SHARDS, created_ms, shard_of
from broker.redis.client import Redis
from broker.redis.commands import Command
from broker.store import commands, keys
from broker.store.filters import EVERYTHING, Filters, IndexKey

LIST_BYTES = 512 * 1024
"""Maximum bytes of the rows of a page; a page that reaches it ends early."""
LIST_ROUNDS = 50
"""Maximum reads per page while expired members are skipped."""
CHECKED_ROWS = 200
"""Members of an index that one read checks against the other conditions of a filter."""
FIRST_ROWS = 16  # rows of the first read, before their length is known
ROW_BYTES = 500  # bytes of a row without data of callers and upstreams
LOOK = 200  # members of an index that one call of prune.lua checks: at most a millisecond
PRUNE_EVERY = 5.0  # seconds; dashboards request the counts every two seconds
SAMPLE = 8  # members that `counts` checks in each shard
SHARDS_AT_ONCE = 8  # calls of prune.lua in one pipeline, which Redis runs without interruption

Row = tuple[str, Sequence[bytes | None]]
"""A generation's id, and the requested fields of its meta."""


class Found(NamedTuple):
    """A page of rows, whether there are more, and the id up to which the index has been read: `after` of the next page.
    None if nothing was read."""

    rows: list[Row]
    more: bool
    last: str | None


class Listing:
    """`fields`: the fields of a generation's meta to return; they must include those that filters check."""

    def __init__(self, redis: Redis, fields: Sequence[str]) -> None:
        self.redis = redis
        self._fields = tuple(fields)
        self._status = fields.index("st")
        self._prune_at: dict[str, float] = {}  # by tenant; bounded by the number of configured keys

    async def page(self, tenant: str, filters: Filters, limit: int, after: str | None) -> Found:
        """Return rows, newest first. `after`: `last` of the previous page, or the id of its last row.

        Work and bytes are bounded: a page ends before `limit` if its rows reach LIST_BYTES, or if members remain after
        LIST_ROUNDS reads that have expired or do not match. Then there are more, even after an empty page: expired
        members are removed, so the same call makes progress, and `last` is after those that do not match."""
        found: list[Row] = []
        room, checks = LIST_BYTES, filters.checks_rows(tenant)
        indexes = await self._narrowest(tenant, filters)
        for _ in range(LIST_ROUNDS):
            wanted = limit - len(found)
            page, more = await self._ids(indexes, filters, max(wanted, CHECKED_ROWS) if checks else wanted, after)
            rows, looked_at, size, gone = await self._readable(page, room, filters, wanted)
            if gone:
                await self._prune_from(indexes, tenant, created_ms(after) if after else None)
            found += rows
            room -= size
            more = more or looked_at < len(page)
            if looked_at:
                after = page[looked_at - 1]
            if not more or len(found) == limit or room <= 0:
                return Found(found, more, after)
        return Found(found, True, after)

    async def _narrowest(self, tenant: str, filters: Filters) -> Sequence[IndexKey]:
        """Return the smallest set of indexes with all matching generations."""
        candidates = filters.candidates(tenant)
        if len(candidates) == 1:
            return candidates[0]
        sizes = await self.redis.pipeline(
            [("ZCARD", key_in(shard)) for keys_in in candidates for key_in in keys_in for shard in SHARDS]
        )
        totals: list[int] = []
        for keys_in in candidates:
            count = len(keys_in) * len(SHARDS)
            totals.append(sum(sizes[:count]))
            sizes = sizes[count:]
        return candidates[totals.index(min(totals))]

    async def _ids(
        self, indexes: Sequence[IndexKey], filters: Filters, limit: int, after: str | None
    ) -> tuple[list[str], bool]:
        ranges = await self.redis.pipeline(
            [
                command
                for shard in SHARDS
                for key_in in indexes
                for command in _ranges(key_in(shard), shard, after, limit + 1, filters)
            ]
        )
        gids = sorted({member.decode() for members in ranges for member in members}, reverse=True)
        if after:
            gids = [gid for gid in gids if gid < after]
        return gids[:limit], len(gids) > limit

    async def _readable(
        self, gids: Sequence[str], room: int, filters: Filters, wanted: int
    ) -> tuple[list[Row], int, int, bool]:
        """Return up to `wanted` rows that match and can still be read (by the rules of `state`), up to about `room`
        bytes; the number of ids checked; the bytes of the rows; and whether some cannot be read."""
        found: list[Row] = []
        looked_at = size = 0
        gone = False
        largest = LIST_BYTES // FIRST_ROWS
        while looked_at < len(gids) and size < room and len(found) < wanted:
            some = gids[looked_at : looked_at + max(1, (room - size) // largest)]
            replies = await self.redis.pipeline(
                [cmd for gid in some for cmd in (("HMGET", keys.meta(gid), *self._fields), ("EXISTS", keys.log(gid)))]
            )
            largest = ROW_BYTES
            for gid, fields, has_log in zip(some, replies[::2], replies[1::2], strict=True):
                looked_at += 1
                row = ROW_BYTES + sum(len(field or b"") for field in fields)
                largest = max(largest, row)
                if not has_log or fields[self._status] in (None, b"deleted"):
                    gone = True
                elif filters is EVERYTHING or filters.matches(gid, dict(zip(self._fields, fields, strict=True))):
                    found.append((gid, fields))
                    size += row
                if size >= room or len(found) == wanted:
                    break
        return found, looked_at, size, gone

    async def _prune_some(self, tenant: str) -> None:
        """Check a random sample of each shard, and more members of shards where over a quarter of the sample has
        expired."""
        every = [(shard, keys.index(shard, tenant)) for shard in SHARDS]
        removed = await self._prune(every, tenant, SAMPLE, "")
        many = [index for index, count in zip(every, removed, strict=True) if count > SAMPLE // 4]
        await self._prune(many, tenant, LOOK, "")

    async def _prune_from(self, indexes: Sequence[IndexKey], tenant: str, newest: int | None) -> None:
        """Remove unreadable generations from the indexes of a page, from `newest` (ms; None: the very newest) on."""
        named = [(shard, key_in(shard)) for key_in in indexes for shard in SHARDS]
        await self._prune(named, tenant, LOOK, "+inf" if newest is None else newest)

    async def _prune(self, indexes: Sequence[tuple[str, str]], tenant: str, count: int, newest: int | str) -> list[int]:
        """Remove unreadable generations from indexes, given as (shard, key), among `count` members of each: those from
        the score `newest` down, or random ones if it is empty. Return the number removed by each; 0 while Redis rejects
        writes, which must not prevent reads."""
        removed: list[int] = []
        for at in range(0, len(indexes), SHARDS_AT_ONCE):
            some = indexes[at : at + SHARDS_AT_ONCE]
            try:
                removed += await commands.prune(self.redis, some, tenant, count, newest)
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


def _ranges(index: str, shard: str, after: str | None, count: int, filters: Filters = EVERYTHING) -> list[Command]:
    """Return the commands that read the newest `count` members after `after`. Ids sort by time, then by shard: among
    ids of the same ms, all those of another shard sort on one side of `after`. Of its own shard all ids of that ms are
    read; their number is small."""
    oldest = "-inf" if filters.since_ms is None else filters.since_ms
    until = filters.until_ms
    if after is None or (until is not None and until <= created_ms(after)):
        newest = "+inf" if until is None else f"({until}"
        return [("ZREVRANGEBYSCORE", index, newest, oldest, "LIMIT", 0, count)]
    ms, own = created_ms(after), shard_of(after)
    newest = ms if shard < own else f"({ms}"
    behind = ("ZREVRANGEBYSCORE", index, newest, oldest, "LIMIT", 0, count)
    return [("ZREVRANGEBYSCORE", index, ms, ms), behind] if shard == own else [behind]
