"""Reads some logs through one connection: one XREAD that blocks over all of them. Which those are is for
fanout/reader_pool.py to say. A new one wakes the reader through a control key in its key set; CLIENT UNBLOCK would need
administrator's rights.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import cast

from broker.concurrency.backoff import Backoff
from broker.errors import StorageUnavailable
from broker.events import RawEntry
from broker.fanout.feed import Feed, OutOfOrder
from broker.ids import Cursor
from broker.redis.client import Redis, Script
from broker.redis.connection import Reply, RespConnection, RespError, bulk, describe_error, raise_for_error
from broker.store import keys

logger = logging.getLogger("tokencast.reader")

WAKE = Script("fanout", "wake")
COUNT = 256  # entries per stream and read
BLOCK_MS = 2000
SLACK = 3.0  # seconds beyond the block: no answer by then means that the connection is dead
IDLE = 15.0  # seconds without a stream, after which the connection is let go
MOVING = 0.05  # seconds between two looks at a shard that is moving
News = tuple[bytes, list[RawEntry]]
"""A stream's name and what it has new."""


class Stream:
    """A followed log, and its part of the command, which is packed anew only where the log has grown."""

    __slots__ = ("_at", "_packed", "feed", "name")

    def __init__(self, name: bytes, feed: Feed) -> None:
        self.feed = feed
        self.name = bulk(name)
        self._at: Cursor | None = None
        self._packed = b""

    @property
    def tail(self) -> bytes:
        tail = self.feed.tail
        if tail is not self._at:
            self._at, self._packed = tail, bulk(b"%d-%d" % tail)
        return self._packed


class LogReader:
    """Follows feeds until it is told not to. `deliver(reader)` is awaited before the next read, and gives out what is
    `due`: a process that is busy delivering reads rarer and longer, which is all the coalescing there is. Where it has
    to wait for its turn, or needs more than one, it has the next read begun with `ahead`: see fanout/scheduler.py."""

    def __init__(
        self,
        redis: Redis,
        group: str,
        name: tuple[str, int],
        deliver: Callable[[LogReader], Awaitable[None]],
        resync: Callable[[Feed], Awaitable[None]],
    ) -> None:
        self._redis = redis
        self._deliver = deliver
        self._resync = resync
        self.group = group
        self._control = keys.wake(group, *name)
        self._control_id = "0"
        block_ms = min(BLOCK_MS, redis.servers.longest_block_ms)
        self._timeout = block_ms / 1000 + SLACK
        self._backoff = Backoff()
        xread = b"XREAD", b"COUNT", b"%d" % COUNT, b"BLOCK", b"%d" % block_ms, b"STREAMS", self._control.encode()
        self._xread = b"".join(map(bulk, xread))
        self._streams: dict[bytes, Stream] = {}
        self._wanted = asyncio.Event()
        self._connection: RespConnection | None = None
        self._answer: asyncio.Future[list[Reply]] | None = None  # to the read that is under way
        self._torn: dict[Feed, None] = {}  # what was read does not follow what was known
        self.due: dict[Feed, None] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def add(self, feed: Feed) -> None:
        """It is read from the next read on, from its tail."""
        name = keys.log(feed.gid).encode()
        self._streams[name] = Stream(name, feed)
        self._wanted.set()

    def remove(self, feed: Feed) -> None:
        """The read under way may still bring its news; nobody takes them."""
        self._streams.pop(keys.log(feed.gid).encode(), None)

    async def wake(self) -> None:
        """So that the next read begins now."""
        if self._answer is not None:
            with suppress(StorageUnavailable):  # else it is about to reconnect, with all its streams
                await self._redis.run(WAKE, (self._control,), (60_000,))

    async def run(self) -> None:
        """Until cancelled: Redis may go and come back, readers see a pause."""
        troubles = self._redis.servers.troubles
        while True:
            await self._wanted.wait()
            try:
                connection = await self._redis.servers.open(self.group)
            except OSError as error:
                troubles.tell(logger, f"cannot reach Redis: {describe_error(error)}", topic="connection")
            else:
                try:
                    await self._read(connection)
                    continue  # nothing is left to follow
                except (OSError, RespError) as error:
                    if isinstance(error, TimeoutError):
                        self._redis.servers.mark_suspect()
                    troubles.tell(logger, f"lost Redis: {describe_error(error)}", topic="connection")
                except Exception:  # one generation's trouble must not end the reading of the others
                    logger.exception("reader failed, starts again")
                finally:
                    if self._answer is not None:
                        self._answer.cancel()
                    self._connection = self._answer = None
                    connection.close()
            await self._backoff.wait()

    async def _read(self, connection: RespConnection) -> None:
        self._connection = connection
        while True:
            if not self._streams:
                if not await self._asked():
                    return
                self._redis.servers.check(connection.node)
            if not self._torn:
                self._take(await self._news(connection))
            while self._torn:
                feed, _ = self._torn.popitem()
                await self._resync(feed)
                self.due[feed] = None
            await self._deliver(self)
            if self._backoff.failing:
                self._backoff.success()
                self._redis.servers.troubles.over()

    async def _news(self, connection: RespConnection) -> Sequence[News]:
        self.ahead()
        if self._answer is None:
            raise ConnectionResetError("Redis closed the connection")
        try:
            (reply,) = await self._answer
            raise_for_error(reply)
        except RespError as error:
            if error.kind not in ("TRYAGAIN", "ASK"):
                raise
            reply = await self._one_by_one(connection)
        finally:
            self._answer = None
        await self._redis.servers.check_answer(connection, reply)
        return reply or ()

    # --- for who delivers (broker/fanout/scheduler.py) --------------------------------------------------------------

    def ahead(self) -> None:
        if self._answer is None and self._connection is not None:
            with suppress(OSError):  # it is closed
                self._answer = self._connection.begin(self._command(), 1, timeout=self._timeout)

    def collect(self) -> None:
        """An answer that is no news is left to `_news`."""
        answer, connection = self._answer, self._connection
        if answer is None or connection is None or not answer.done() or answer.exception() is not None:
            return
        (reply,) = answer.result()
        if isinstance(reply, list) and not self._redis.servers.is_demoted(connection.node):
            self._answer = None
            self._take(cast("list[News]", reply))

    # --- what a read consists of -------------------------------------------------------------------------

    async def _asked(self) -> bool:
        """Whether it is soon given something to follow; else its connection is let go."""
        self._wanted.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(IDLE):
                return await self._wanted.wait()
        return False

    def _command(self) -> bytes:
        streams = self._streams.values()
        names = [stream.name for stream in streams]
        tails = [stream.tail for stream in streams]
        count = b"*%d\r\n" % (8 + 2 * len(names))
        return b"".join((count, self._xread, *names, bulk(self._control_id.encode()), *tails))

    async def _one_by_one(self, connection: RespConnection) -> Sequence[News]:
        """While the shard moves to another server of a cluster: some streams are here, some or all there already. No
        read can span both, and one that waits here hears nothing of those over there."""
        await asyncio.sleep(MOVING)
        streams = list(self._streams.items())
        commands = [("XREAD", "COUNT", COUNT, "STREAMS", name, str(stream.feed.tail)) for name, stream in streams]
        replies = await connection.pipeline(commands, timeout=SLACK)
        return [news for reply in replies if reply and not isinstance(reply, RespError) for news in reply]

    def _take(self, reply: Sequence[News]) -> None:
        for name, entries in reply:
            stream = self._streams.get(name)
            if name == self._control.encode():
                self._control_id = entries[-1][0].decode()
            elif stream is not None:
                self.due[stream.feed] = None
                try:
                    stream.feed.extend(entries)
                except OutOfOrder as error:
                    logger.warning("reading again: %s", error)
                    self._torn[stream.feed] = None
