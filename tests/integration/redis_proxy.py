"""A TCP proxy in front of Redis that loses replies, stalls, and is away, when a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit


class RedisProxy:
    """`lose_reply_to` a word: the next command that holds it reaches Redis, its reply nobody; the connection breaks.
    `pause`: nothing comes back until `resume`."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 6379)
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._connections: set[asyncio.Task[None]] = set()
        self.lose_reply_to: bytes | None = None
        self.lost = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def pause(self) -> None:
        self._flowing.clear()

    def resume(self) -> None:
        self._flowing.set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Away: no connection stays, none is accepted until `open`."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        to_redis: asyncio.StreamWriter | None = None
        try:
            from_redis, to_redis = await asyncio.open_connection(*self._target)
            losing = asyncio.Event()
            pumps = [
                asyncio.create_task(self._forward(reader, to_redis, losing)),
                asyncio.create_task(self._back(from_redis, writer, losing)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            for stream in (writer, to_redis):
                if stream is not None:
                    stream.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event) -> None:
        while data := await reader.read(1 << 18):
            if self.lose_reply_to is not None and self.lose_reply_to in data:
                self.lose_reply_to = None
                losing.set()
            writer.write(data)
            await writer.drain()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event) -> None:
        while data := await reader.read(1 << 18):
            await self._flowing.wait()
            if losing.is_set():
                self.lost += 1
                return
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def redis_proxy(target: str) -> AsyncGenerator[RedisProxy, None]:
    proxy = RedisProxy(target)
    await proxy.open()
    try:
        yield proxy
    finally:
        proxy.resume()
        await proxy.close()
