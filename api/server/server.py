"""uvicorn with an end: it waits for open streams for ever when it is told to stop, and its lifespan's shutdown comes
only after they have closed. So the streams are ended first, while it still answers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import cast

import uvicorn
from starlette.types import ASGIApp

from api.server.memory import ResponseMemory
from api.server.protocol import ConnectionLimits, HttpProtocol, State
from broker.runtime.process import open_files
from broker.runtime.sockets import bound_socket
from broker.settings.settings import Settings

OWN_FILES = 110
"""What a gateway may have open itself under load: connections to Redis, nearly all of it."""

VANISHED = 30
"""Seconds without an acknowledgement, of a heartbeat at the latest, behind which a peer's machine or network is taken
for gone. The kernel by itself would try for a quarter of an hour."""


class Server(uvicorn.Server):
    """`drain()` is awaited at the first signal, and not if a second one (Ctrl-C) is in a hurry. Connections are taken
    until it is over: who comes meanwhile is told to come back, and by whom if not by us."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._drain = drain
        self.server_state = State()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Return after a signal. uvicorn would raise it again, which ends the process before what its callers do last:
        the spans that are left would not be sent, and Redis's connections not be closed."""
        with self.capture_signals():
            await self._serve(sockets)
            self._captured_signals.clear()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.server_state.stopping = True
        for connection in cast("set[HttpProtocol]", self.server_state.connections).copy():
            connection.let_go()
        draining = asyncio.ensure_future(self._drain())
        while not draining.done() and not self.force_exit:
            await asyncio.wait((draining,), timeout=0.1)
        draining.cancel()
        await super().shutdown(sockets)


def listen(settings: Settings, *, spread: bool = False) -> socket.socket:
    """A listening socket, whose options its connections inherit; Misconfigured names the variable where that fails.
    `spread`: one of several on this port, among which the kernel spreads the connections."""
    sock = bound_socket(settings.host, settings.port, "HOST and PORT", spread=spread)
    # Less of the kernel's buffer per stalled reader: 343 instead of 3,975 kB were pinned by one.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, VANISHED * 1000)
    sock.listen(2048)
    sock.set_inheritable(True)
    return sock


def limits_of(settings: Settings) -> ConnectionLimits:
    """Four fifths of the files that the process may open are for connections, and a tenth for telling others that
    there is no room. Where files are few, as many as Redis may take are left to it."""
    files = open_files()
    room = max(min(files * 8 // 10, files - OWN_FILES), files // 4)
    return ConnectionLimits(
        request_time=settings.header_timeout,
        send_time=settings.send_timeout,
        connections=min(settings.max_connections or room, room),
        most_connections=room + files // 10,
    )


def config_for(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    class Protocol(HttpProtocol):
        limits = limits_of(settings)
        unread = ResponseMemory(settings.unread_bytes)

    return uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        loop="uvloop",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive,
        timeout_graceful_shutdown=int(settings.send_timeout) + 5,  # for what is still being taken after the drain
    )
