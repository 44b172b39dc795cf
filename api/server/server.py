"""uvicorn with an ordered shutdown. By itself it waits without limit for open streams, and its lifespan shutdown comes
only after they have closed; here the streams are ended first, while it still answers requests."""

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

RESERVED_FILES = 110
"""Files that a gateway itself may open under load, nearly all of them connections to Redis."""

PEER_TIMEOUT = 30
"""Seconds without an acknowledgement (of a heartbeat at the latest) after which a peer's machine or network counts as
gone. The kernel by itself would try for a quarter of an hour."""


class Server(uvicorn.Server):
    """The server. `drain()` is awaited at the first signal and abandoned at a second one (Ctrl-C). New connections are
    accepted until it is done and told to reconnect elsewhere."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._drain = drain
        self.server_state = State()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Return after a signal. uvicorn would raise the signal again, which ends the process before its callers have
        sent the remaining spans and closed the connections to Redis."""
        with self.capture_signals():
            await self._serve(sockets)
            self._captured_signals.clear()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.server_state.stopping = True
        for connection in cast("set[HttpProtocol]", self.server_state.connections).copy():
            connection.close_if_idle()
        draining = asyncio.ensure_future(self._drain())
        while not draining.done() and not self.force_exit:
            await asyncio.wait((draining,), timeout=0.1)
        draining.cancel()
        await super().shutdown(sockets)


def listen(settings: Settings, *, spread: bool = False) -> socket.socket:
    """Return a listening socket whose options its connections inherit; raises Misconfigured with the variable's name on
    failure. `spread`: one of several sockets on this port, among which the kernel spreads the connections."""
    sock = bound_socket(settings.host, settings.port, "HOST and PORT", spread=spread)
    # Less kernel memory per stalled reader: one pinned 343 instead of 3,975 kB.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PEER_TIMEOUT * 1000)
    sock.listen(2048)
    sock.set_inheritable(True)
    return sock


def limits_of(settings: Settings) -> ConnectionLimits:
    """Return the limits: 80 % of the file limit is for connections, another 10 % for telling further clients that there
    is no room. If the limit is low, files are left for the connections to Redis."""
    files = open_files()
    room = max(min(files * 8 // 10, files - RESERVED_FILES), files // 4)
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
        timeout_graceful_shutdown=int(settings.send_timeout) + 5,  # for responses still being read after the drain
    )
