"""One connection: uvicorn's protocol, extended by direct access to its transport and by timeouts for slow peers.

A peer can be slow in three ways. Sending: a request is limited in size and time. Receiving: bytes that the peer does
not take have a timeout. Closing: a response may be complete before its request is, and to close then would be a reset,
which can destroy the response in transit; so our side is shut down first, and the peer gets a moment to close.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Literal, cast

from httptools import HttpParserError
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from api.errors import bare_error
from api.server.memory import ResponseMemory
from api.server.scope import FULL
from api.server.upgrade import comes_again, feed
from api.server.wire import EXTENSION, ignore

HEAD_BYTES = 32 * 1024  # target and header lines, including trailers: twice the limit of browsers and proxies
BODY_RATE = 16 * 1024  # bytes per second; a body that arrives faster has no time limit
LINGER = 1.0  # seconds for the peer to read the response and close
LINGER_BYTES = 1024 * 1024  # bytes of an answered request that are read and discarded


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Connection limits. Times are in seconds."""

    request_time: float
    send_time: float
    connections: int
    """Connections that are served; further ones are told to come back."""
    most_connections: int
    """Connections that are accepted at all; further ones are aborted, since no file descriptors are left."""


class State(ServerState):
    """State shared by all connections of a server."""

    stopping = False


class _Phase(Enum):
    IDLE = auto()  # no request is being received
    HEAD = auto()
    BODY = auto()


class _Event(asyncio.Event):
    """An event whose queue is created by the first waiter: that saves 760 bytes, and a connection has two events that
    are almost never waited for."""

    def __init__(self) -> None:
        self._waiters: Any = ()
        self._value = False

    async def wait(self) -> Literal[True]:
        if not self._waiters:
            self._waiters = deque[asyncio.Future[bool]]()
        return await super().wait()


class _Pipeline(list[Any]):
    """The part of a deque that uvicorn uses, without memory while it is empty."""

    __slots__ = ()

    def appendleft(self, item: Any) -> None:
        self.insert(0, item)


class HttpProtocol(HttpToolsProtocol):
    """Gives responses access to connection and request (`api/server/wire.py`), and reports what happens to them."""

    limits: ConnectionLimits
    unread: ResponseMemory

    # Not in the instance's dict: with more than thirty names it is no longer shared and takes 1.3 KiB more.
    __slots__ = (
        "_closed",
        "_deadline",
        "_discarded",
        "_flushing",
        "_full",
        "_head",
        "_holding",
        "_lingering",
        "_lost",
        "_phase",
        "_received",
        "_since",
        "_streaming",
        "_unparsed",
        "_writable",
        "tenant",
    )

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._writable: Callable[[], None] = ignore
        self._closed: Callable[[], None] = ignore
        self._streaming = False
        self._full = False
        self._lost = False
        self._lingering = False
        self._holding = False
        self.tenant = ""  # whose response it is, for `unread`
        self._phase = _Phase.HEAD  # waiting for the first request
        self._since = 0.0  # start of the phase
        self._received = 0  # bytes received in this phase
        self._head = 0  # bytes of this request's target and headers so far
        self._unparsed = 0  # bytes given to the parser since its last callback
        self._discarded = 0
        self._deadline: asyncio.TimerHandle | None = None  # request timeout, then the closing timeout
        self._flushing: asyncio.TimerHandle | None = None

    # --- used by api/server/wire.py -----------------------------------------------------------------------

    def streaming(self, writable: Callable[[], None], closed: Callable[[], None]) -> None:
        """Start a stream that is written directly to the transport; the callbacks report that it takes more, and that
        it is gone."""
        self._writable, self._closed = writable, closed
        self._streaming = True
        self._forget_deadline()
        self.flow.resume_reading()  # a pipelined request pauses it, and then we would not see the peer leave

    def streamed(self) -> None:
        """End the stream: the connection belongs to uvicorn again."""
        self._writable = self._closed = ignore
        self._streaming = False

    # --- the connection -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self.pipeline = cast("Any", _Pipeline())
        writable = self.flow._is_writable_event = _Event()  # pyright: ignore[reportPrivateUsage]
        writable.set()
        self._full = len(self.connections) > self.limits.connections
        if len(self.connections) > self.limits.most_connections:
            return transport.abort()
        self._since = self.loop.time()
        return self._watch_request()

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return self._discard(len(data))
        if self._streaming:
            return self.transport.close()  # a request after a stream would be kept until the stream ends
        if self._phase is _Phase.IDLE:
            self._enter(_Phase.HEAD)
        for start in range(0, len(data), HEAD_BYTES):
            self._feed(data[start : start + HEAD_BYTES])
            if self._lingering or self.transport.is_closing():
                return None
        return self._watch_request()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._writable()
        if self._holding:
            self._holding = False
            self.unread.release(self)
            super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._forget_deadline()
        if self._flushing is not None:
            self._flushing.cancel()
        if self._holding:
            self._holding = False
            self.unread.release(self)
        super().connection_lost(exc)
        self._closed()
        # Break reference cycles: the garbage collector runs so rarely that thousands of connections would wait for it.
        self.parser = self.cycle = cast("Any", None)
        self.pipeline.clear()

    # --- the request --------------------------------------------------------------------------------------

    def _feed(self, piece: bytes) -> None:
        """Feed a piece to the parser. Pieces are small, so that data which the parser buffers until a line is complete
        is noticed in time."""
        self._unparsed += len(piece)
        self._received += len(piece)
        self._unset_keepalive_if_required()
        try:
            feed(self, piece)
        except HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("")
        if self._head + self._unparsed > HEAD_BYTES and not self._lingering:
            self._refuse(431, "headers_too_large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head = self._unparsed = 0
        if self._phase is not _Phase.HEAD:
            self._enter(_Phase.HEAD)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value) + 4)

    def _count(self, length: int) -> None:
        self._head += length
        self._unparsed = 0
        if self._head > HEAD_BYTES:
            raise ValueError("too long")  # the parser stops, and `send_400_response` follows

    def on_headers_complete(self) -> None:
        if comes_again(self):
            return
        super().on_headers_complete()
        self._unparsed = self._discarded = 0
        self._enter(_Phase.BODY)
        cycle = self.cycle
        cycle.message_event = _Event()  # the original has not been seen by anyone yet
        cycle.transport = cast("asyncio.Transport", _ResponseTransport(self))
        extensions = cast("dict[str, Any]", self.scope.setdefault("extensions", {}))
        extensions[EXTENSION] = weakref.ref(cycle)
        if self._full:
            extensions[FULL] = True
        if self._full or cast("State", self.server_state).stopping:
            cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        super().on_body(body)
        if self.cycle.response_complete:
            self._discard(len(body))

    def on_message_complete(self) -> None:
        if comes_again(self):
            return
        super().on_message_complete()
        self._unparsed = 0
        self._phase = _Phase.IDLE
        self._forget_deadline()

    def send_400_response(self, msg: str) -> None:
        if self._head > HEAD_BYTES:
            self._refuse(431, "headers_too_large")
        else:
            self._refuse(400, "invalid_http")

    def _refuse(self, status: int, code: str) -> None:
        """Send an error and close, unless another response is being sent."""
        if self.transport.is_closing():
            return None
        answering = self._answering
        own = answering if self._phase is _Phase.BODY else None  # the handler that waits for the rest of this body
        if self.pipeline or (answering and (answering.response_started or not own)):
            return self.transport.abort()
        if own or self._phase is not _Phase.BODY:
            self.transport.write(bare_error(status, code))
        return self.shut_down_writing()

    @property
    def _answering(self) -> RequestResponseCycle | None:
        """The newest request while its response is incomplete."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return None if cycle is None or cycle.response_complete else cycle

    # --- time ---------------------------------------------------------------------------------------------

    def _enter(self, phase: _Phase) -> None:
        self._phase = phase
        self._since = self.loop.time()
        self._received = 0
        self._forget_deadline()

    def _watch_request(self) -> None:
        if self._deadline is None and self._phase is not _Phase.IDLE:
            self._deadline = self.loop.call_at(self._due(), self._on_deadline)

    def _due(self) -> float:
        rate = BODY_RATE if self._phase is _Phase.BODY else float("inf")
        return self._since + self.limits.request_time + self._received / rate

    def _on_deadline(self) -> None:
        self._deadline = None
        answering = self._answering
        if answering and (self._phase is _Phase.HEAD or answering.response_started):
            # A response is still being sent: the timeout of the next request begins after it.
            self._since = self.loop.time()
        if self._due() > self.loop.time():
            self._watch_request()
        elif self._phase is _Phase.HEAD and not self._received:
            self.transport.close()
        else:
            self._refuse(408, "request_timeout")

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _watch_flush(self) -> None:
        pending = self.transport.get_write_buffer_size()
        if self._flushing is None and pending and not self._lost:
            self._flushing = self.loop.call_later(self.limits.send_time, self._check_flush, pending)

    def _check_flush(self, before: int) -> None:
        self._flushing = None
        if self.transport.get_write_buffer_size() < before:
            self._watch_flush()
        else:
            self.transport.abort()

    # --- the end ------------------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        """Start the next request only after the peer has taken this response, so that at most one response per
        connection is unread."""
        if self._lingering:
            return
        if self.flow.write_paused and not self._lost:
            self._holding = True
            self.unread.hold(self, self.tenant)
            if not self.transport.is_closing():
                self.flow.pause_reading()
        else:
            super().on_response_complete()
        self._watch_flush()

    # --- used by api/server/memory.py ---------------------------------------------------------------------

    @property
    def pending(self) -> int:
        return self.transport.get_write_buffer_size()

    def drop(self) -> None:
        self.transport.abort()

    # --- used by api/server/wire.py -----------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if not self._lingering and not self.transport.is_closing():
            self.transport.write(data)

    def close_if_idle(self) -> None:
        """Close idle connections because the server stops. A new connection may still send its first request."""
        if cast("RequestResponseCycle | None", self.cycle) is not None:
            self.shutdown()

    def close_after_response(self) -> None:
        """Close once the response is sent and the request has been received or given up."""
        if self._phase is _Phase.BODY:
            self.shut_down_writing()
        else:
            self.transport.close()
            self._watch_flush()

    def shut_down_writing(self) -> None:
        """Shut down our side; the connection closes with the peer's side, or after LINGER seconds."""
        if self._lingering or self.transport.is_closing():
            return
        self._lingering = True
        self._unset_keepalive_if_required()
        self._forget_deadline()
        self._deadline = self.loop.call_later(LINGER, self.transport.abort)
        self.flow.resume_reading()
        self.transport.write_eof()

    def _discard(self, length: int) -> None:
        self._discarded += length
        if self._discarded > LINGER_BYTES:
            self.shut_down_writing()
            self.flow.pause_reading()


class _ResponseTransport:
    """The transport that a response sees: it can write, and ask for the end."""

    def __init__(self, protocol: HttpProtocol) -> None:
        self.protocol = protocol

    def write(self, data: bytes) -> None:
        self.protocol.write(data)

    def is_closing(self) -> bool:
        return self.protocol.transport.is_closing()

    def close(self) -> None:
        self.protocol.close_after_response()
