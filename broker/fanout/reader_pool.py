"""Assigns logs to readers: active logs, few per connection, and idle logs apart from them, many per connection.

The cost of an XREAD for Redis grows with each key it names (0.7 µs per wake-up; 98 µs at 32 keys, 280 at 1,000), so an
active log pays for all logs that are read with it. With all logs read alike, twelve per connection, a chunk of ten
active logs (100 a second each) cost Redis 0.91 to 1.38 times as much next to 990 idle logs as without them; with
separate groups it costs 0.90 to 1.04 times as much, with 17 connections instead of 84. New logs are assumed to be
active.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

from broker.fanout.feed import Feed
from broker.fanout.reader import LogReader
from broker.ids import Cursor, shard_of
from broker.redis.client import Redis

ACTIVE_PER_READER = 12  # logs per connection
IDLE_PER_READER = 64
IDLE_AFTER = 5  # consecutive checks without news until a log counts as idle; two with news make it active again


class Assignment:
    """How one log is read."""

    __slots__ = ("idle", "idle_checks", "reader", "tail")

    def __init__(self, tail: Cursor) -> None:
        self.reader: LogReader | None = None
        self.idle = False
        self.tail = tail  # at the last check
        self.idle_checks = 0  # consecutive checks without news


class ReaderPool:
    def __init__(
        self,
        redis: Redis,
        process: str,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        deliver: Callable[[LogReader], Awaitable[None]],
        resync: Callable[[Feed], Awaitable[None]],
    ) -> None:
        self._redis = redis
        self._process = process
        self._spawn = spawn
        self._deliver = deliver
        self._resync = resync
        self._idle: list[LogReader] = []
        self._active: list[LogReader] = []
        self._assignments: dict[Feed, Assignment] = {}

    def __iter__(self) -> Iterator[LogReader]:
        return iter((*self._active, *self._idle))

    def __contains__(self, feed: object) -> bool:
        return feed in self._assignments

    async def follow(self, feed: Feed) -> None:
        """Follow a feed from its tail."""
        assignment = self._assignments[feed] = Assignment(feed.tail)
        await self._assign(feed, assignment).wake()

    def unfollow(self, feed: Feed) -> None:
        assignment = self._assignments.pop(feed, None)
        if assignment is not None and assignment.reader is not None:
            assignment.reader.remove(feed)

    def rebalance(self) -> None:
        """Move logs between the active and the idle group; to be called about once a second. Entries that a reader
        brings of a log that was moved meanwhile are brought again by the next reader."""
        woken: dict[LogReader, None] = {}
        for feed, assignment in self._assignments.items():
            before = assignment.idle_checks
            assignment.idle_checks = before + 1 if feed.tail == assignment.tail else 0
            assignment.tail = feed.tail
            active_again = assignment.idle and assignment.idle_checks == before == 0
            if active_again or (not assignment.idle and assignment.idle_checks >= IDLE_AFTER):
                assignment.idle = not assignment.idle
                woken[self._assign(feed, assignment)] = None
        for reader in woken:
            self._spawn(reader.wake())

    def _assign(self, feed: Feed, assignment: Assignment) -> LogReader:
        """Assign the feed to the first reader of its group with room, and return this reader."""
        if assignment.reader is not None:
            assignment.reader.remove(feed)
        readers, most = (self._idle, IDLE_PER_READER) if assignment.idle else (self._active, ACTIVE_PER_READER)
        group = self._redis.topology.group(shard_of(feed.gid))
        reader = next((reader for reader in readers if reader.group == group and len(reader) < most), None)
        if reader is None:
            name = self._process, len(self._idle) + len(self._active)
            reader = LogReader(self._redis, group, name, self._deliver, self._resync)
            readers.append(reader)
            self._spawn(reader.run())
        reader.add(feed)
        assignment.reader = reader
        return reader
