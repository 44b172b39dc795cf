"""A TCP proxy in front of Redis with which tests lose replies, stall, reset, blackhole or refuse connections."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from tests.servers.tcp import TcpServer, relay


class RedisProxy:
    """`lose_reply_to`: the next command that contains these bytes reaches Redis, its reply is lost and the connection
    breaks. `pause`: no replies until `resume`. `reset`: an RST to every client. `blackhole`: open connections drop all
    data in both directions and never close, as if a machine or a route failed; new ones work as before."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 6379)
        self._server = TcpServer(self._serve)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._clients: dict[asyncio.StreamWriter, asyncio.Event] = {}  # for each, whether its data is dropped
        self.lose_reply_to: bytes | None = None
        self.lost = 0

    @property
    def port(self) -> int:
        """0 before `open`."""
        return self._server.port

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def pause(self) -> None:
        self._flowing.clear()

    def resume(self) -> None:
        self._flowing.set()

    def reset(self) -> None:
        for client in self._clients:
            client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.transport.abort()

    def blackhole(self) -> int:
        """Drop all data of the open connections. Returns their number."""
        for blackholed in self._clients.values():
            blackholed.set()
        return len(self._clients)

    async def open(self) -> None:
        self._server.open()

    async def close(self) -> None:
        """Close all connections and accept none until `open`."""
        await self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_redis: asyncio.StreamWriter | None = None
        try:
            from_redis, to_redis = await asyncio.open_connection(*self._target)
            losing = asyncio.Event()
            blackholed = self._clients[writer] = asyncio.Event()
            await relay(
                self._forward(reader, _Direction(to_redis, blackholed), losing),
                self._back(from_redis, _Direction(writer, blackholed), losing),
            )
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._clients.pop(writer, None)
            for stream in (writer, to_redis):
                if stream is not None:
                    stream.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: _Direction, losing: asyncio.Event) -> None:
        while data := await reader.read(1 << 18):
            if self.lose_reply_to is not None and self.lose_reply_to in data:
                self.lose_reply_to = None
                losing.set()
            await writer.write(data)

    async def _back(self, reader: asyncio.StreamReader, writer: _Direction, losing: asyncio.Event) -> None:
        while data := await reader.read(1 << 18):
            await self._flowing.wait()
            if losing.is_set():
                self.lost += 1
                return
            await writer.write(data)


class _Direction:
    """One direction of a connection."""

    def __init__(self, writer: asyncio.StreamWriter, blackholed: asyncio.Event) -> None:
        self._writer = writer
        self._swallowed = blackholed

    async def write(self, data: bytes) -> None:
        if not self._swallowed.is_set():
            self._writer.write(data)
            await self._writer.drain()


@asynccontextmanager
async def redis_proxy(target: str) -> AsyncGenerator[RedisProxy, None]:
    proxy = RedisProxy(target)
    await proxy.open()
    try:
        yield proxy
    finally:
        proxy.resume()
        await proxy.close()
