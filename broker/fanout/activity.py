"""The activity of each tenant, and of all: which generations were created, started and ended, without their text.

The Lua scripts write it to one stream per shard. A process reads all of these streams with one blocking read (one per
server of a cluster), and only while there is at least one watcher. Watchers are subscribers of their tenant's in-memory
channel and cost Redis nothing. Delivery is at least once, in order for each generation; each event holds all that is
known of its generation.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import product, starmap
from typing import NamedTuple

import msgspec
from msgspec import Struct
from msgspec.json import decode

from broker.concurrency.backoff import Backoff
from broker.concurrency.cancellation import cancel_and_wait
from broker.fanout.dialect import Dialect
from broker.fanout.hub import Hub
from broker.fanout.memory_feed import FIRST, MemoryFeed
from broker.fanout.reader import BLOCK_MS, COUNT, SLACK, StreamEntries
from broker.ids import ALL_TENANTS, SHARDS, Cursor
from broker.redis.client import Redis
from broker.redis.clock import RedisClock
from broker.redis.connection import RespConnection
from broker.redis.errors import RespError, describe_error
from broker.store import keys

logger = logging.getLogger("tokencast.activity")

MAX_EVENTS = 2000  # events of one tenant that are loaded for its first watcher; as many as a shard's stream holds
HISTORY_BYTES = 4 * 1024 * 1024
"""Bytes of the shards' streams that are read for the history, newest first. The streams hold the events of all
tenants."""
FIRST_ENTRIES = 16  # entries of a stream in the first read, until their size is known
WINDOW = 2 * 1024 * 1024  # framed bytes that are kept afterwards
OVERLAP = 2000  # ms that are repeated after a resume: the clocks of a cluster's masters differ
DAY = 86_400_000  # ms; an idle shard's stream expires


class Entry(NamedTuple):
    """One entry of a shard's stream. `at` is its id: when it was written, in ms by the clock of its server, and a
    number."""

    at: tuple[int, int]
    shard: str
    tenant: str
    kind: bytes
    data: bytes

    @property
    def group(self) -> str | None:
        """The group of the generation. Decoded, since a text in its metadata may look the same."""
        return decode(self.data, type=_Grouped).group


class _Grouped(Struct):
    group: str | None = None


class Watched(NamedTuple):
    """What a channel holds: the events of a tenant, or of ALL_TENANTS. `group`: None for all generations. `named`: each
    with its tenant. `history`: with the history."""

    tenant: str
    group: str | None
    named: bool
    history: bool


class History(MemoryFeed):
    """The channel of a tenant, of all tenants, or of a group. The `at_ms` of an event is the id to resume from:
    everything that was written up to that time has been delivered before it."""

    def __init__(self, watched: Watched, dialect: Dialect) -> None:
        super().__init__(watched.tenant, dialect, WINDOW)
        self._watched = watched
        self.loading: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.loaded: dict[str, tuple[int, int]] = {}  # shard → newest entry of the loaded history
        self.pending: list[Entry] | None = []  # entries that arrived while loading
        self.complete_since = 0  # ms
        self.id = 0
        self._times: deque[int] = deque()
        self._first = 0  # seq of the first of these

    def wants(self, entry: Entry) -> bool:
        """Return whether an entry belongs to this channel."""
        of_tenant = self._watched.tenant in (entry.tenant, ALL_TENANTS)
        return of_tenant and (self._watched.group is None or entry.group == self._watched.group)

    def append(self, entry: Entry, read_up_to: int) -> None:
        """Append an entry. `read_up_to`: no entry written up to this time (ms) follows after this batch."""
        if entry.at <= self.loaded.get(entry.shard, (0, 0)):
            return
        self.id = max(self.id, min(entry.at[0], read_up_to))
        self.add(entry.kind, self.id, _with_tenant(entry) if self._watched.named else entry.data)
        self._times.append(entry.at[0])
        while self._first <= self.window.earliest.seq:
            self.complete_since = max(self.complete_since, self._times.popleft())
            self._first += 1

    def position_after(self, resumed: int) -> Cursor:
        """Return the position after which a reader continues that has received this id."""
        seq = self._first
        for ms in self._times:
            if ms > resumed - OVERLAP:
                break
            seq += 1
        return Cursor(FIRST.attempt, seq - 1)


class Activity:
    """The activity reader of this process, and the channels of its watchers."""

    def __init__(self, redis: Redis, hub: Hub, dialect: Dialect) -> None:
        self._redis = redis
        self._hub = hub
        self._dialect: Dialect = dialect
        self._clock = RedisClock(redis)
        self._channels: dict[Watched, History] = {}
        self._loads = asyncio.Lock()
        self._starting = asyncio.Lock()
        self._start_under_way: asyncio.Task[None] | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._last: dict[str, bytes] = {}
        self._groups_read_up_to: dict[str, int] = {}  # group of shards → time up to which everything has been read
        self._newest = 0

    @asynccontextmanager
    async def open(
        self, tenant: str, group: str | None = None, *, history: bool = True, named: bool = False
    ) -> AsyncGenerator[History]:
        """Keep a channel of a tenant, of ALL_TENANTS, or of one of their groups, up to date until the context is left.
        `history`: include the history, which is read for the first watcher that wants it; without it the channel begins
        now, or with what has been read for others. `named`: name the tenant in each event. Raises StorageUnavailable.
        """
        known = self._channels.get(Watched(tenant, group, named, history=True))
        key = Watched(tenant, group, named, history=history or (known is not None and known.loading.done()))
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = History(key, self._dialect)
            channel.loading = asyncio.create_task(self._load(channel, history=history))
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

    # --- history ------------------------------------------------------------------------------------------

    async def _load(self, channel: History, *, history: bool) -> None:
        await self._start()
        entries: list[Entry] = []
        loaded: dict[str, tuple[int, int]] = {}
        since = int(await self._clock.now() * 1000)
        if history:
            async with self._loads:  # one at a time: each may hold megabytes
                entries, loaded, since = await self._read_history(channel, since - DAY)
        for entry in entries:
            channel.append(entry, entry.at[0])
        pending, channel.pending = channel.pending or (), None
        channel.loaded = loaded
        for entry in pending:
            channel.append(entry, self._read_up_to)
        channel.complete_since = max(channel.complete_since, since)
        channel.id = max(channel.id, self._read_up_to)

    async def _read_history(self, channel: History, since: int) -> tuple[list[Entry], dict[str, tuple[int, int]], int]:
        """Return the channel's newest events, the newest entry of each shard, and the time (ms) since which the events
        are complete."""
        entries: list[Entry] = []
        loaded: dict[str, tuple[int, int]] = {}
        for shard in SHARDS:
            found, complete = await self._newest_of(shard)
            if found:
                loaded[shard] = found[-1].at
            if not complete:
                since = max(since, found[0].at[0])
            entries += (entry for entry in found if channel.wants(entry))
            entries.sort(key=_written)
            if len(entries) > MAX_EVENTS:
                since = max(since, entries[-MAX_EVENTS - 1].at[0])
                del entries[:-MAX_EVENTS]
        return entries, loaded, since

    async def _newest_of(self, shard: str) -> tuple[list[Entry], bool]:
        """Return the newest entries of a shard's stream, oldest first, up to its part of HISTORY_BYTES, and whether
        these are all entries."""
        found: list[Entry] = []
        room, count, before = HISTORY_BYTES // len(SHARDS), FIRST_ENTRIES, "+"
        while room > 0 and len(found) < MAX_EVENTS:
            reply = await self._redis.execute("XREVRANGE", keys.activity(shard), before, "-", "COUNT", count)
            found += (_entry(shard, *one) for one in reply)
            if len(reply) < count:
                return found[::-1], True
            sizes = [sum(map(len, fields)) for _, fields in reply]
            room -= sum(sizes)
            count = min(max(1, room // max(sizes)), MAX_EVENTS - len(found))
            before = f"({reply[-1][0].decode()}"
        return found[::-1], False

    # --- reading ------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        """Start the readers. Concurrent calls share one start and its failure, so none waits longer than a single start
        takes."""
        if self._start_under_way is None or self._start_under_way.done():
            self._start_under_way = asyncio.create_task(self._start_readers())
            self._start_under_way.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(self._start_under_way)

    async def _start_readers(self) -> None:
        """Start reading from the newest entries."""
        async with self._starting:
            if self._readers:
                return
            now = int(await self._clock.now() * 1000)
            newest = await self._redis.pipeline(
                [("XREVRANGE", keys.activity(shard), "+", "-", "COUNT", 1) for shard in SHARDS]
            )
            self._last = {shard: reply[0][0] if reply else b"0-0" for shard, reply in zip(SHARDS, newest, strict=True)}
            servers = self._redis.topology
            self._groups_read_up_to = dict.fromkeys(servers.groups, now)
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
        """Read until cancelled. While Redis is unreachable, watchers see a pause."""
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
                logger.exception("activity reader failed, restarting")
            await backoff.wait()

    async def _read(self, connection: RespConnection, group: str, shards: Sequence[str]) -> None:
        before, block_ms = self._newest, min(BLOCK_MS, self._redis.topology.longest_block_ms)
        reply: Sequence[StreamEntries] | None = await connection.call(
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
        # A stream that returned COUNT entries may have more, none of which is newer than its last one here.
        cut = [_at(news[-1][0])[0] for _, news in reply or () if len(news) >= COUNT]
        self._newest = max(self._newest, newest)
        self._groups_read_up_to[group] = max(self._groups_read_up_to[group], min(cut, default=newest))
        await self._distribute(entries)

    @property
    def _read_up_to(self) -> int:
        return min(self._groups_read_up_to.values(), default=0)

    async def _distribute(self, entries: Sequence[Entry]) -> None:
        changed: dict[History, None] = {}
        grouped = any(watched.group is not None for watched in self._channels)
        for entry in entries:
            groups = (None, entry.group) if grouped and entry.group is not None else (None,)
            for key in _channels_of(entry.tenant, groups):
                channel = self._channels.get(key)
                if channel is None:
                    continue
                if channel.pending is not None:
                    channel.pending.append(entry)
                else:
                    channel.append(entry, self._read_up_to)
                    changed[channel] = None
        for channel in changed:
            await self._hub.deliver((channel,))


def _at(entry_id: bytes) -> tuple[int, int]:
    ms, _, number = entry_id.partition(b"-")
    return int(ms), int(number)


def _entry(shard: str, entry_id: bytes, fields: Sequence[bytes]) -> Entry:
    """Parse an entry. Our script is the only writer, so the fields are in the order tn, g, e, d."""
    return Entry(_at(entry_id), shard, fields[1].decode(), fields[5], fields[7])


def _written(entry: Entry) -> tuple[int, int]:
    return entry.at


def _channels_of(tenant: str, groups: Sequence[str | None]) -> Iterator[Watched]:
    """Return the channels that hold the events of a tenant and of these groups."""
    return starmap(Watched, product((tenant, ALL_TENANTS), groups, (False, True), (False, True)))


def _with_tenant(entry: Entry) -> bytes:
    """Return an entry's data, a JSON object that is not empty, with its tenant."""
    return b'%b,"tenant":%b}' % (entry.data.rstrip()[:-1], msgspec.json.encode(entry.tenant))
