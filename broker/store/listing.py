"""What a tenant has, newest first, and how many of each status: read from its indexes, of which each shard has one.

An index outlives its members. Each call that finds expired members removes them, in bulk and in short scripts: a
hundred thousand cost less than half a second, of which no other command waits for more than a few ms.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

from broker.errors import StorageUnavailable
from broker.events import STATUSES
from broker.ids import SHARDS, created_ms, shard_of
from broker.redis.client import Redis, Script
from broker.redis.commands import Command
from broker.store import keys

PRUNE = Script("store", "prune")
UNLIST = Script("store", "unlist")

LIST_BYTES = 512 * 1024
"""Bytes of a list's rows; a page that would have more ends before."""
LIST_ROUNDS = 50
"""Times that a list looks behind what has expired."""
FIRST_ROWS = 16  # read at first, until it is known how long they are
ROW_BYTES = 500  # of a row without what callers and upstreams put into it
LOOK = 200  # members of an index that are looked at in one call of prune.lua: at most a millisecond
PRUNE_EVERY = 5.0  # seconds: dashboards ask for the counts every other one
SAMPLE = 8  # members that `counts` looks at in each shard
SHARDS_AT_ONCE = 8  # calls of prune.lua in one pipeline, which Redis runs without a pause

Row = tuple[str, Sequence[bytes | None]]
"""A generation's id, and the fields of its meta that were asked for."""


def lifecycle_keys(gid: str) -> list[str]:
    """The first five keys of every lifecycle script."""
    shard = shard_of(gid)
    return [keys.meta(gid), keys.log(gid), keys.live(shard), keys.index(shard), keys.activity(shard)]


class Listing:
    """`fields`: of a generation's meta, `st` among them."""

    def __init__(self, redis: Redis, fields: Sequence[str]) -> None:
        self.redis = redis
        self._fields = fields
        self._status = fields.index("st")
        self._prune_at: dict[str, float] = {}  # by tenant, of which there are as many as keys are configured

    async def page(self, tenant: str, status: str | None, limit: int, after: str | None) -> tuple[list[Row], bool]:
        """Newest first, and whether there are more. `after` is the id of the last one of the page before.

        Work and bytes are bounded: a page ends before `limit` when its rows hold LIST_BYTES, or when that many have
        expired since the last look that LIST_ROUNDS were not enough. Then there are more, also behind an empty page:
        asked for again, it begins with what was removed no longer there."""
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
        """Those of a page that can still be read, as `state` sees it, up to about `room` bytes; how many of the page
        were looked at, and the bytes of their rows."""
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
        """Looks at a random sample of each shard, and at more where over a quarter of it has expired."""
        removed = await self._prune(SHARDS, tenant, None, SAMPLE)
        many = [shard for shard, count in zip(SHARDS, removed, strict=True) if count > SAMPLE // 4]
        await self._prune(many, tenant, None, LOOK)

    async def _prune(
        self, shards: Sequence[str], tenant: str, status: str | None, count: int, newest: int | None = -1
    ) -> list[int]:
        """Removes from the indexes what can no longer be read, among `count` members of each shard: those from
        `newest` on (ms; None: the very newest), or random ones. How many were removed of each shard; none while Redis
        refuses to be written to, which must keep nobody from reading."""
        suffix = f":{status}" if status else ""
        score = "+inf" if newest is None else newest if newest >= 0 else ""
        removed: list[int] = []
        for at in range(0, len(shards), SHARDS_AT_ONCE):
            calls = [
                (lifecycle_keys(gid), (gid, tenant, suffix, count, score))
                for gid in map(_any_of, shards[at : at + SHARDS_AT_ONCE])
            ]
            try:
                removed += await self.redis.run_many(PRUNE, calls)
            except StorageUnavailable:
                removed += [0] * len(calls)
        return removed

    # --- how many ---

    async def counts(self, tenant: str) -> dict[str, int]:
        """How many generations the tenant has, by status. Some of what has expired is counted still; it is looked for
        at random every PRUNE_EVERY seconds, and removed until it is less than about a quarter. So is
        all that was lost before it ended."""
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
        """Removes what expired before it ended, since nothing ran for a week: it counts as waiting or running."""
        with suppress(StorageUnavailable):  # a Redis that refuses to be written to must keep nobody from reading
            await self.redis.run_many(UNLIST, [(lifecycle_keys(gid), (gid, tenant)) for gid in map(_any_of, SHARDS)])


def _any_of(shard: str) -> str:
    """An id of the shard that no generation has: for scripts that look at others there."""
    return f"gen_{'0' * 10}{shard}{'0' * 22}"


def _ranges(index: str, shard: str, after: str | None, count: int) -> list[Command]:
    """What reads the newest `count` members behind `after`. Ids sort by time, then by shard: of those created in the
    same ms, another shard's are all on one side of it. Of its own shard's, of which nobody can create many in one ms,
    all are read."""
    if after is None:
        return [("ZREVRANGEBYSCORE", index, "+inf", "-inf", "LIMIT", 0, count)]
    ms, own = created_ms(after), shard_of(after)
    newest = ms if shard < own else f"({ms}"
    behind = ("ZREVRANGEBYSCORE", index, newest, "-inf", "LIMIT", 0, count)
    return [("ZREVRANGEBYSCORE", index, ms, ms), behind] if shard == own else [behind]
