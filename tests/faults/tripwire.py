"""A TCP proxy in front of Redis that parses commands and acts at the moment when one of them passes.

Before the command: the process has sent it, and Redis never receives it. After the command: Redis has executed it, and
the process never receives the reply. At that moment the trap runs its action (for example, it kills the process), and
then the connection breaks. This replaces crash hooks in the product: the unchanged product is tested from outside.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal
from urllib.parse import urlsplit

import hiredis

from tests import support
from tests.servers.tcp import TcpServer, relay

Command = list[bytes]
Matcher = Callable[[Command], bool]
When = Literal["before", "after"]


def script(name: str) -> Matcher:
    """Matches a call of this script."""
    known = support.script(name)
    sha, source = known.sha.encode(), known.source.encode()
    return lambda command: command[1:2] == [sha] or (command[0] == b"EVAL" and command[1] == source)


def command(name: bytes) -> Matcher:
    return lambda command: command[0] == name


def transaction(name: bytes) -> Matcher:
    """Matches the EXEC of a transaction with this command."""
    inside = False

    def matches(command: Command) -> bool:
        nonlocal inside
        if command[0] == b"EXEC":
            found, inside = inside, False
            return found
        if command[0] == b"MULTI":
            inside = False
        inside = inside or command[0] == name
        return False

    return matches


class Trap:
    """Springs once, at the `nth` matching command; commands without an effect do not count."""

    def __init__(self, matches: Matcher, when: When, act: Callable[[], object], nth: int) -> None:
        self.when = when
        self.sprung = asyncio.Event()
        self._matches = matches
        self._act = act
        self._left = nth

    def springs(self, when: When, command: Command) -> bool:
        """Whether the trap springs at this command; if so, run its action."""
        if when != self.when or self._left == 0 or not self._matches(command):
            return False
        self._left -= 1
        if self._left > 0:
            return False
        self._act()
        self.sprung.set()
        return True


class Tripwire:
    """The proxy. One trap can be set at a time."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 6379)
        self._server = TcpServer(self._serve)
        self._connections: set[asyncio.Task[None]] = set()
        self._trap: Trap | None = None
        self.latency = (0.0, 0.0)
        """Minimum and maximum delay of every reply, in seconds."""
        self.url = ""

    def trap(self, matches: Matcher, when: When, act: Callable[[], object] = lambda: None, *, nth: int = 1) -> Trap:
        self._trap = Trap(matches, when, act, nth)
        return self._trap

    def cut(self) -> None:
        """Break all connections; new ones are accepted."""
        for connection in self._connections:
            connection.cancel()

    async def open(self) -> None:
        self._server.open()
        self.url = f"redis://{self._server.address}/0"

    async def close(self) -> None:
        await self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        streams = [writer]
        try:
            from_redis, to_redis = await asyncio.open_connection(*self._target)
            streams.append(to_redis)
            awaited: deque[Command] = deque()
            await relay(self._forward(reader, to_redis, awaited), self._back(from_redis, writer, awaited))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            for stream in streams:
                stream.transport.abort()

    async def _forward(
        self, reader: asyncio.StreamReader, to_redis: asyncio.StreamWriter, awaited: deque[Command]
    ) -> None:
        """Forward command by command: the commands of one write may be separated at any of them."""
        parser = hiredis.Reader()
        while data := await reader.read(1 << 18):
            parser.feed(data)
            while (command := parser.gets()) is not False:
                if self._trap is not None and self._trap.springs("before", command):
                    return
                awaited.append(command)
                to_redis.write(hiredis.pack_command(tuple(command)))
            await to_redis.drain()

    async def _back(
        self, from_redis: asyncio.StreamReader, writer: asyncio.StreamWriter, awaited: deque[Command]
    ) -> None:
        parser = hiredis.Reader()
        while data := await from_redis.read(1 << 18):
            parser.feed(data)
            while (reply := parser.gets()) is not False:
                command = awaited.popleft()
                if self._trap is not None and not _had_no_effect(reply) and self._trap.springs("after", command):
                    return
            await asyncio.sleep(random.uniform(*self.latency))
            writer.write(data)
            await writer.drain()


def _had_no_effect(reply: Any) -> bool:
    """Whether a blocking command timed out, a pull granted nothing, or the server did not know the script."""
    granted_nothing = isinstance(reply, list) and reply[:1] == [[]]
    return (
        reply is None
        or granted_nothing
        or (isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"))
    )


@asynccontextmanager
async def tripwire(target: str) -> AsyncGenerator[Tripwire, None]:
    wire = Tripwire(target)
    await wire.open()
    try:
        yield wire
    finally:
        await wire.close()
