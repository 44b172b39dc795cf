"""What happens to generations, tenant by tenant: their beginnings and ends, and none of their text.

The scripts write it to one stream a shard. A process reads all of them with one blocking read (one for each server of
a cluster), and only while somebody watches; watchers are subscribers of a channel that their tenant has, and cost
Redis nothing. Events are told at least once, in order for each generation, each with all that is known of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from broker.concurrency.backoff import Backoff
from broker.concurrency.cancellation import cancel_and_wait
from broker.fanout.buffer import Dialect
from broker.fanout.hub import Hub
from broker.fanout.memory_feed import FIRST, MemoryFeed
from broker.fanout.reader import BLOCK_MS, COUNT, SLACK, News
from broker.ids import SHARDS, Cursor
from broker.redis.client import Redis
from broker.redis.clock import RedisClock
from broker.redis.connection import RespConnection
from broker.redis.errors import RespError, describe_error
from broker.store import keys

logger = logging.getLogger("tokencast.activity")

KEPT = 2000  # events of one tenant, when the first one comes to watch; as many as a shard's stream holds
PAST_BYTES = 4 * 1024 * 1024
"""Bytes of the shards' streams that are read for it, the newest first; they hold the events of all tenants."""
FIRST_ENTRIES = 16  # of a stream are read at first, until it is known how long they are
WINDOW = 2 * 1024 * 1024  # bytes of them, framed, from then on
OVERLAP = 2000  # ms told again to who resumes: the clocks of a cluster's masters differ
DAY = 86_400_000  # ms; an idle shard's stream expires


class Entry(NamedTuple):
    """One entry of a shard's stream. `at`, its id: when it was written, ms by the clock of its server, and a number."""

    at: tuple[int, int]
    shard: str
    tenant: str
    kind: bytes
    data: bytes


class History(MemoryFeed):
    """One tenant's channel. An event's `at_ms` is the id that its reader resumes by: everything that was written up to
    then has been told before."""

    def __init__(self, tenant: str, dialect: Dialect) -> None:
        super().__init__(tenant, dialect, WINDOW)
        self.loading: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.loaded: dict[str, tuple[int, int]] = {}  # shard → newest entry in what was loaded
        self.early: list[Entry] | None = []  # what came meanwhile
        self.complete_since = 0  # ms
        self.id = 0
        self._times: deque[int] = deque()
        self._first = 0  # seq of the first of them

    def tell(self, entry: Entry, all_told: int) -> None:
        """`all_told`: nothing that was written up to then comes after this batch."""
        if entry.at <= self.loaded.get(entry.shard, (0, 0)):
            return
        self.id = max(self.id, min(entry.at[0], all_told))
        self.add(entry.kind, self.id, entry.data)
        self._times.append(entry.at[0])
        while self._first <= self.window.earliest.seq:
            self.complete_since = max(self.complete_since, self._times.popleft())
            self._first += 1

    def behind(self, resumed: int) -> Cursor:
        """Where a reader goes on that has got this id."""
        seq = self._first
        for ms in self._times:
            if ms > resumed - OVERLAP:
                break
            seq += 1
        return Cursor(FIRST.attempt, seq - 1)


class Activity:
    """The one reader of this process, and the channels of those who watch."""

    def __init__(self, redis: Redis, hub: Hub, dialect: Dialect) -> None:
        self._redis = redis
        self._hub = hub
        self._dialect: Dialect = dialect
        self._clock = RedisClock(redis)
        self._channels: dict[tuple[str, bool], History] = {}  # by tenant, and whether it has the past
        self._loads = asyncio.Lock()
        self._starting = asyncio.Lock()
        self._start_under_way: asyncio.Task[None] | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._last: dict[str, bytes] = {}
        self._told: dict[str, int] = {}  # group of shards → everything there up to then has been read
        self._newest = 0

    @asynccontextmanager
    async def open(self, tenant: str, *, past: bool = True) -> AsyncGenerator[History]:
        """A channel of the tenant, kept up to date until it is left. `past`: with its history, which is read for the
        first one who wants it; else from now on, or with what others here had read. StorageUnavailable."""
        known = self._channels.get((tenant, True))
        key = tenant, past or (known is not None and known.loading.done())
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = History(tenant, self._dialect)
            channel.loading = asyncio.create_task(self._load(channel, past=past))
        channel.users += 1
        try:
            await asyncio.shield(channel.loading)
            yield channel
        finally:
            channel.users -= 1
            if channel.users == 0:
                del self._channels[key]
                await cancel_and_wait((channel.loading,))
                await self._stop_unwatched()

    async def close(self) -> None:
        await cancel_and_wait([*self._readers, *filter(None, [self._start_under_way])])

    # --- the history -------------------------------------------------------------------------------------

    async def _load(self, channel: History, *, past: bool) -> None:
        await self._start()
        entries: list[Entry] = []
        loaded: dict[str, tuple[int, int]] = {}
        since = int(await self._clock.now() * 1000)
        if past:
            async with self._loads:  # one at a time: each may take megabytes
                entries, loaded, since = await self._past(channel.tenant, since - DAY)
        for entry in entries:
            channel.tell(entry, entry.at[0])
        early, channel.early = channel.early or (), None
        channel.loaded = loaded
        for entry in early:
            channel.tell(entry, self._all_told)
        channel.complete_since = max(channel.complete_since, since)
        channel.id = max(channel.id, self._all_told)

    async def _past(self, tenant: str, since: int) -> tuple[list[Entry], dict[str, tuple[int, int]], int]:
        """The tenant's newest events so far, the newest entry of each shard, and the ms since which they are
        complete."""
        entries: list[Entry] = []
        loaded: dict[str, tuple[int, int]] = {}
        for shard in SHARDS:
            found, complete = await self._newest_of(shard)
            if found:
                loaded[shard] = found[-1].at
            if not complete:
                since = max(since, found[0].at[0])
            entries += (entry for entry in found if entry.tenant == tenant)
            entries.sort(key=_written)
            if len(entries) > KEPT:
                since = max(since, entries[-KEPT - 1].at[0])
                del entries[:-KEPT]
        return entries, loaded, since

    async def _newest_of(self, shard: str) -> tuple[list[Entry], bool]:
        """The newest entries of a shard's stream, up to its part of PAST_BYTES, the oldest of them first; and whether
        that is all of it."""
        found: list[Entry] = []
        room, count, before = PAST_BYTES // len(SHARDS), FIRST_ENTRIES, "+"
        while room > 0 and len(found) < KEPT:
            reply = await self._redis.execute("XREVRANGE", keys.activity(shard), before, "-", "COUNT", count)
            found += (_entry(shard, *one) for one in reply)
            if len(reply) < count:
                return found[::-1], True
            sizes = [sum(map(len, fields)) for _, fields in reply]
            room -= sum(sizes)
            count = min(max(1, room // max(sizes)), KEPT - len(found))
            before = f"({reply[-1][0].decode()}"
        return found[::-1], False

    # --- the reader --------------------------------------------------------------------------------------

    async def _start(self) -> None:
        """Concurrent calls share one start, and its failure: they wait no longer than one does."""
        if self._start_under_way is None or self._start_under_way.done():
            self._start_under_way = asyncio.create_task(self._start_readers())
            self._start_under_way.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(self._start_under_way)

    async def _start_readers(self) -> None:
        """From what is newest now."""
        async with self._starting:
            if self._readers:
                return
            now = int(await self._clock.now() * 1000)
            newest = await self._redis.pipeline(
                [("XREVRANGE", keys.activity(shard), "+", "-", "COUNT", 1) for shard in SHARDS]
            )
            self._last = {shard: reply[0][0] if reply else b"0-0" for shard, reply in zip(SHARDS, newest, strict=True)}
            servers = self._redis.topology
            self._told = dict.fromkeys(servers.groups, now)
            self._newest = now
            self._readers = [
                asyncio.create_task(self._run(group, [shard for shard in SHARDS if servers.group(shard) == group]))
                for group in servers.groups
            ]

    async def _stop_unwatched(self) -> None:
        async with self._starting:
            if not self._channels:
                readers, self._readers = self._readers, []
                await cancel_and_wait(readers)

    async def _run(self, group: str, shards: Sequence[str]) -> None:
        """Until cancelled: Redis may go and come back, watchers see a pause."""
        servers, backoff = self._redis.topology, Backoff()
        while True:
            try:
                connection = await servers.open(group)
                try:
                    while True:
                        await self._read(connection, group, shards)
                        if backoff.failing:
                            backoff.success()
                            servers.log_throttle.over()
                finally:
                    connection.close()
            except (OSError, RespError) as error:
                if isinstance(error, TimeoutError):
                    servers.mark_suspect()
                servers.log_throttle.tell(logger, f"lost Redis: {describe_error(error)}")
            except Exception:
                logger.exception("reader failed, starts again")
            await backoff.wait()

    async def _read(self, connection: RespConnection, group: str, shards: Sequence[str]) -> None:
        before, block_ms = self._newest, min(BLOCK_MS, self._redis.topology.longest_block_ms)
        reply: Sequence[News] | None = await connection.call(
            *("XREAD", "COUNT", COUNT, "BLOCK", block_ms, "STREAMS"),
            *map(keys.activity, shards),
            *(self._last[shard] for shard in shards),
            timeout=block_ms / 1000 + SLACK,
        )
        await self._redis.topology.check_answer(connection, reply)
        named = {keys.activity(shard).encode(): shard for shard in shards}
        entries = [_entry(named[name], *one) for name, news in reply or () for one in news]
        entries.sort(key=_written)
        for name, news in reply or ():
            self._last[named[name]] = news[-1][0]
        newest = max(before, entries[-1].at[0]) if entries else before
        # A stream that gave as much as it was asked for may have more that is no newer than its last.
        cut = [_at(news[-1][0])[0] for _, news in reply or () if len(news) >= COUNT]
        self._newest = max(self._newest, newest)
        self._told[group] = max(self._told[group], min(cut, default=newest))
        await self._tell(entries)

    @property
    def _all_told(self) -> int:
        return min(self._told.values(), default=0)

    async def _tell(self, entries: Sequence[Entry]) -> None:
        told: dict[History, None] = {}
        for entry in entries:
            for past in (True, False):
                channel = self._channels.get((entry.tenant, past))
                if channel is None:
                    continue
                if channel.early is not None:
                    channel.early.append(entry)
                else:
                    channel.tell(entry, self._all_told)
                    told[channel] = None
        for channel in told:
            await self._hub.deliver((channel,))


def _at(entry_id: bytes) -> tuple[int, int]:
    ms, _, number = entry_id.partition(b"-")
    return int(ms), int(number)


def _entry(shard: str, entry_id: bytes, fields: Sequence[bytes]) -> Entry:
    """The writer is our script, so the fields stand in the order tn, g, e, d."""
    return Entry(_at(entry_id), shard, fields[1].decode(), fields[5], fields[7])


def _written(entry: Entry) -> tuple[int, int]:
    return entry.at
