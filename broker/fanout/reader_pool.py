"""Which reader reads which log: those that speak together, a few to a connection, and those that are quiet apart from
them, many to one.

An XREAD costs Redis with every key that it names (0.7 µs per wake-up; 98 µs at 32 keys, 280 at 1,000), so a log that
speaks pays for all that are read with it. A chunk of ten logs that speak, 100 a second each, cost Redis 0.91 to 1.38
times as much beside 990 quiet ones as without them while all were read alike, twelve by twelve; now it costs 0.90 to
1.04 times as much, and there are 17 connections instead of 84. New logs are taken for such as will speak.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

from broker.fanout.feed import Feed
from broker.fanout.reader import LogReader
from broker.ids import Cursor, shard_of
from broker.redis.client import Redis

SPEAKING = 12  # logs per connection
QUIET = 64
FALLS_QUIET = 5  # times on end that `sort` finds no news; it speaks again with news two times on end


class Assignment:
    """How one log is read."""

    __slots__ = ("quiet", "reader", "silent", "tail")

    def __init__(self, tail: Cursor) -> None:
        self.reader: LogReader | None = None
        self.quiet = False
        self.tail = tail  # as `sort` found it
        self.silent = 0  # times on end


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
        self._quiet: list[LogReader] = []
        self._speaking: list[LogReader] = []
        self._places: dict[Feed, Assignment] = {}

    def __iter__(self) -> Iterator[LogReader]:
        return iter((*self._speaking, *self._quiet))

    def __contains__(self, feed: object) -> bool:
        return feed in self._places

    async def follow(self, feed: Feed) -> None:
        """From its tail on."""
        place = self._places[feed] = Assignment(feed.tail)
        await self._put(feed, place).wake()

    def unfollow(self, feed: Feed) -> None:
        place = self._places.pop(feed, None)
        if place is not None and place.reader is not None:
            place.reader.remove(feed)

    def sort(self) -> None:
        """Tells the quiet from those that speak: to be called about once a second. What a reader brings of a log that
        was taken from it meanwhile, the next one brings again."""
        woken: dict[LogReader, None] = {}
        for feed, place in self._places.items():
            silent, place.silent = place.silent, place.silent + 1 if feed.tail == place.tail else 0
            place.tail = feed.tail
            if (place.silent == silent == 0) if place.quiet else (place.silent >= FALLS_QUIET):
                place.quiet = not place.quiet
                woken[self._put(feed, place)] = None
        for reader in woken:
            self._spawn(reader.wake())

    def _put(self, feed: Feed, place: Assignment) -> LogReader:
        """Into the first reader with room, which it gives."""
        if place.reader is not None:
            place.reader.remove(feed)
        readers, most = (self._quiet, QUIET) if place.quiet else (self._speaking, SPEAKING)
        group = self._redis.topology.group(shard_of(feed.gid))
        reader = next((reader for reader in readers if reader.group == group and len(reader) < most), None)
        if reader is None:
            name = self._process, len(self._quiet) + len(self._speaking)
            reader = LogReader(self._redis, group, name, self._deliver, self._resync)
            readers.append(reader)
            self._spawn(reader.run())
        reader.add(feed)
        place.reader = reader
        return reader
