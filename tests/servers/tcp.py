"""A TCP server in a test's own process.

`asyncio.start_server` neither waits for its handlers nor closes their connections before Python 3.12, and a connection
accepted during its close is never closed. The garbage collector finds such a transport later, in a test that has
nothing to do with it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

from broker.concurrency.cancellation import cancel_and_wait

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def relay(*directions: Coroutine[Any, Any, None]) -> None:
    """Run both directions of a proxied connection until one of them ends, in whatever way; then end the other."""
    pumps = [asyncio.create_task(direction) for direction in directions]
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel_and_wait(pumps)


class TcpServer:
    """Calls `handler` for each connection and closes the connection when the handler returns. After `close` there is no
    connection and no handler left. A disconnecting peer is not an error; any other exception of a handler is raised by
    `close`."""

    def __init__(self, handler: Handler, *, tls: ssl.SSLContext | None = None, limit: int = 1 << 16) -> None:
        self._handler = handler
        self._tls = tls
        self._limit = limit
        self._socket: socket.socket | None = None
        self._connections: dict[asyncio.Task[None], socket.socket] = {}
        self.port = 0
        """Stays the same if it is closed and opened again."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def open(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self._socket.setblocking(False)
        self.port = self._socket.getsockname()[1]
        asyncio.get_running_loop().add_reader(self._socket, self._accept, self._socket)

    async def close(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        await asyncio.sleep(0)  # let each task begin: a task cancelled earlier would not close its connection
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        while any(each.fileno() != -1 for each in self._connections.values()):  # noqa: ASYNC110 - asyncio has no event for it
            await asyncio.sleep(0)
        self._connections.clear()
        for end in ends:
            if end is not None and not isinstance(end, asyncio.CancelledError):
                raise end

    def _accept(self, listening: socket.socket) -> None:
        try:
            connection, _ = listening.accept()
        except (BlockingIOError, ConnectionAbortedError):  # the peer has disconnected
            return
        connection.setblocking(False)
        self._connections[asyncio.create_task(self._serve(connection))] = connection
        for task, known in list(self._connections.items()):
            if known.fileno() == -1 and task.done() and not task.cancelled() and task.exception() is None:
                del self._connections[task]

    async def _serve(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(self._limit, loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        with suppress(OSError, asyncio.IncompleteReadError):
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection, ssl=self._tls)
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            try:
                await self._handler(reader, writer)
                writer.close()
                await writer.wait_closed()
            finally:
                transport.abort()


@asynccontextmanager
async def tcp_server(
    handler: Handler, *, tls: ssl.SSLContext | None = None, limit: int = 1 << 16
) -> AsyncGenerator[str, None]:
    """Run a server. Yields its address, as in `127.0.0.1:8000`."""
    server = TcpServer(handler, tls=tls, limit=limit)
    server.open()
    try:
        yield server.address
    finally:
        await server.close()
