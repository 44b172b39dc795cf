"""uvicorn with three things it lacks: a way to its transport, a word to the streams before it stops, and an end to
peers that stall.

It waits for open streams for ever when it is told to stop, and its lifespan's shutdown comes only after they have
closed; so the signal itself must start the drain.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.wire import EXTENSION, ignore
from broker.errors import Misconfigured
from broker.settings import Settings


class HttpProtocol(HttpToolsProtocol):
    """Hands connection and request to whoever answers (`api/wire.py`), and passes on what happens to them."""

    _writable: Callable[[], None] = staticmethod(ignore)
    _closed: Callable[[], None] = staticmethod(ignore)
    _streaming = False

    def streaming(self, writable: Callable[[], None], closed: Callable[[], None]) -> None:
        """From now on somebody writes to the transport: whom to tell that it takes more, and that it is gone."""
        self._writable, self._closed = writable, closed
        self._streaming = True

    def streamed(self) -> None:
        """The stream is over; the connection is uvicorn's again."""
        self._writable = self._closed = ignore
        self._streaming = False

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        extensions = self.scope.setdefault("extensions", {})  # pyright: ignore
        extensions[EXTENSION] = (self, self.cycle)  # pyright: ignore

    def data_received(self, data: bytes) -> None:
        if self._streaming:
            # A request pipelined behind a stream: uvicorn stops reading, and would not see the peer leave.
            self.transport.close()
            return
        super().data_received(data)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._writable()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._closed()


class Server(uvicorn.Server):
    """`on_stop()` is called at the first signal, before the server stops taking connections."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], object]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            self._on_stop()
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; Misconfigured names the variable where that fails."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Less of the kernel's buffer per stalled reader: 343 instead of 3,975 kB were pinned by one.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise Misconfigured(f"cannot listen on {host}:{port}: {error.strerror}; HOST and PORT choose another") from None
    sock.listen(2048)
    sock.set_inheritable(True)
    return sock


def config_for(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=HttpProtocol,
        ws="none",
        loop="uvloop",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(settings.drain) + 5,
    )
