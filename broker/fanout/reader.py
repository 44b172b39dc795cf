"""Reads several logs through one connection with one XREAD that blocks over all of them. fanout/reader_pool.py decides
which reader reads which log. A new log wakes the reader through a control key in its key set; CLIENT UNBLOCK would need
administrator's rights."""

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
from broker.redis.connection import RespConnection, bulk, raise_for_error
from broker.redis.errors import RespError, describe_error
from broker.redis.handshake import Reply
from broker.store import keys

logger = logging.getLogger("tokencast.reader")

WAKE = Script("fanout", "wake")
COUNT = 256  # entries per stream and read
BLOCK_MS = 2000
SLACK = 3.0  # seconds after the block; without an answer by then the connection is dead
IDLE = 15.0  # seconds without a stream until the connection is closed
MOVING = 0.05  # seconds between two reads of a shard that is moving
StreamEntries = tuple[bytes, list[RawEntry]]
"""A stream's name and its new entries."""


class Stream:
    """A followed log and its part of the command, which is packed again only if the log has grown."""

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
    """Follows feeds until they are removed. `deliver(reader)` is awaited before the next read and delivers the feeds
    that are `due`: a process that is busy delivering reads less often and more at a time, which is the only coalescing.
    If the delivery has to wait for its slice or needs more than one, it starts the next read early with `prefetch`: see
    fanout/scheduler.py."""

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
        block_ms = min(BLOCK_MS, redis.topology.longest_block_ms)
        self._timeout = block_ms / 1000 + SLACK
        self._backoff = Backoff()
        xread = b"XREAD", b"COUNT", b"%d" % COUNT, b"BLOCK", b"%d" % block_ms, b"STREAMS", self._control.encode()
        self._xread = b"".join(map(bulk, xread))
        self._streams: dict[bytes, Stream] = {}
        self._has_streams = asyncio.Event()
        self._connection: RespConnection | None = None
        self._reply: asyncio.Future[list[Reply]] | None = None  # reply to the read in flight
        self._out_of_order: dict[Feed, None] = {}  # what was read does not follow the tail
        self.due: dict[Feed, None] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def add(self, feed: Feed) -> None:
        """Follow a feed, from its tail, beginning with the next read."""
        name = keys.log(feed.gid).encode()
        self._streams[name] = Stream(name, feed)
        self._has_streams.set()

    def remove(self, feed: Feed) -> None:
        """Stop following a feed. Entries that the read in flight still brings are ignored."""
        self._streams.pop(keys.log(feed.gid).encode(), None)

    async def wake(self) -> None:
        """Wake the reader so that its next read begins now."""
        if self._reply is not None:
            with suppress(StorageUnavailable):  # else it is about to reconnect with all its streams
                await self._redis.run(WAKE, (self._control,), (60_000,))

    async def run(self) -> None:
        """Read until cancelled. While Redis is unreachable, subscribers see a pause."""
        troubles = self._redis.topology.log_throttle
        while True:
            await self._has_streams.wait()
            try:
                connection = await self._redis.topology.open(self.group)
            except OSError as error:
                troubles.tell(logger, f"cannot reach Redis: {describe_error(error)}", topic="connection")
            else:
                try:
                    await self._read(connection)
                    continue  # no stream is left
                except (OSError, RespError) as error:
                    if isinstance(error, TimeoutError):
                        self._redis.topology.mark_suspect()
                    troubles.tell(logger, f"lost Redis: {describe_error(error)}", topic="connection")
                except Exception:  # an error in one generation must not stop the others
                    logger.exception("log reader failed, restarting")
                finally:
                    if self._reply is not None:
                        self._reply.cancel()
                    self._connection = self._reply = None
                    connection.close()
            await self._backoff.wait()

    async def _read(self, connection: RespConnection) -> None:
        self._connection = connection
        while True:
            if not self._streams:
                if not await self._wait_for_stream():
                    return
                self._redis.topology.check(connection.node)
            if not self._out_of_order:
                self._ingest(await self._read_entries(connection))
            while self._out_of_order:
                feed, _ = self._out_of_order.popitem()
                await self._resync(feed)
                self.due[feed] = None
            await self._deliver(self)
            if self._backoff.failing:
                self._backoff.success()
                self._redis.topology.log_throttle.over()

    async def _read_entries(self, connection: RespConnection) -> Sequence[StreamEntries]:
        self.prefetch()
        if self._reply is None:
            raise ConnectionResetError("Redis closed the connection")
        try:
            (reply,) = await self._reply
            raise_for_error(reply)
        except RespError as error:
            if error.kind not in ("TRYAGAIN", "ASK"):
                raise
            reply = await self._read_singly(connection)
        finally:
            self._reply = None
        await self._redis.topology.check_answer(connection, reply)
        return reply or ()

    # --- used by delivery (broker/fanout/scheduler.py) ----------------------------------------------------

    def prefetch(self) -> None:
        if self._reply is None and self._connection is not None:
            with suppress(OSError):  # it is closed
                self._reply = self._connection.begin(self._command(), 1, timeout=self._timeout)

    def collect(self) -> None:
        """Take in a completed reply; errors are left to `_read_entries`."""
        answer, connection = self._reply, self._connection
        if answer is None or connection is None or not answer.done() or answer.exception() is not None:
            return
        (reply,) = answer.result()
        if isinstance(reply, list) and not self._redis.topology.is_demoted(connection.node):
            self._reply = None
            self._ingest(cast("list[StreamEntries]", reply))

    # --- parts of a read ----------------------------------------------------------------------------------

    async def _wait_for_stream(self) -> bool:
        """Wait IDLE seconds for a stream to follow; return False if none came and the connection can be closed."""
        self._has_streams.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(IDLE):
                return await self._has_streams.wait()
        return False

    def _command(self) -> bytes:
        streams = self._streams.values()
        names = [stream.name for stream in streams]
        tails = [stream.tail for stream in streams]
        count = b"*%d\r\n" % (8 + 2 * len(names))
        return b"".join((count, self._xread, *names, bulk(self._control_id.encode()), *tails))

    async def _read_singly(self, connection: RespConnection) -> Sequence[StreamEntries]:
        """Read each stream by itself while its shard moves to another server of a cluster: some streams are still here,
        some have moved. No read can span both servers, and a read that blocks here does not see the streams that have
        moved."""
        await asyncio.sleep(MOVING)
        streams = list(self._streams.items())
        commands = [("XREAD", "COUNT", COUNT, "STREAMS", name, str(stream.feed.tail)) for name, stream in streams]
        replies = await connection.pipeline(commands, timeout=SLACK)
        return [news for reply in replies if reply and not isinstance(reply, RespError) for news in reply]

    def _ingest(self, reply: Sequence[StreamEntries]) -> None:
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
                    self._out_of_order[stream.feed] = None
