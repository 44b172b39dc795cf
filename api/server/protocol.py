"""One connection: uvicorn's protocol with what it lacks, a way to its transport and an end to peers that stall.

A peer can be slow at three things. Asking: a request has a size and a time. Taking: bytes that it does not take have a
time. Leaving: an answer may be there before the request is, and to close then would be a reset, which can destroy
the answer on its way; so we end our side, and give the other a moment.
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

HEAD_BYTES = 32 * 1024  # target and header lines, trailers too: twice what browsers and proxies keep to
BODY_RATE = 16 * 1024  # bytes a second; a body that comes faster is not cut, however long it is
LINGER = 1.0  # seconds for the peer to read our answer and go
LINGER_BYTES = 1024 * 1024  # of a request that has been answered are read and thrown away


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What a gateway bears. Times are in seconds."""

    request_time: float
    send_time: float
    connections: int
    """Connections that are served; those beyond are told to come back."""
    most_connections: int
    """Beyond that there is no file left to tell them with."""


class State(ServerState):
    """What all connections of a server share."""

    stopping = False


class _Phase(Enum):
    QUIET = auto()  # no request is coming in
    HEAD = auto()
    BODY = auto()


class _Event(asyncio.Event):
    """Its queue is made when somebody waits: 760 bytes, and a connection has two that nearly nobody ever waits for."""

    def __init__(self) -> None:
        self._waiters: Any = ()
        self._value = False

    async def wait(self) -> Literal[True]:
        if not self._waiters:
            self._waiters = deque[asyncio.Future[bool]]()
        return await super().wait()


class _Pipeline(list[Any]):
    """A deque, as far as uvicorn uses one, which takes no room while it is empty."""

    __slots__ = ()

    def appendleft(self, item: Any) -> None:
        self.insert(0, item)


class HttpProtocol(HttpToolsProtocol):
    """Hands connection and request to whoever answers (`api/server/wire.py`), and passes on what happens to them."""

    limits: ConnectionLimits
    unread: ResponseMemory

    # Not in the instance's dict: with more than thirty names that one is no longer shared, and takes 1.3 KiB more.
    __slots__ = (
        "_closed",
        "_deadline",
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
        "_thrown_away",
        "_unheard",
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
        self.tenant = ""  # whose answer it is, for `unread`
        self._phase = _Phase.HEAD  # the first request's, from the first moment on
        self._since = 0.0  # when the phase began
        self._received = 0  # bytes in this phase
        self._head = 0  # bytes of this request's target and headers so far
        self._unheard = 0  # bytes that the parser has taken and given nothing for
        self._thrown_away = 0
        self._deadline: asyncio.TimerHandle | None = None  # of the request, then of the peer's leaving
        self._flushing: asyncio.TimerHandle | None = None

    # --- for api/server/wire.py ---------------------------------------------------------------------------------

    def streaming(self, writable: Callable[[], None], closed: Callable[[], None]) -> None:
        """From now on somebody writes to the transport: whom to tell that it takes more, and that it is gone."""
        self._writable, self._closed = writable, closed
        self._streaming = True
        self._forget_deadline()
        self.flow.resume_reading()  # a pipelined request stops it, and we would not see the peer leave

    def streamed(self) -> None:
        """The stream is over; the connection is uvicorn's again."""
        self._writable = self._closed = ignore
        self._streaming = False

    # --- the connection ----------------------------------------------------------------------------------

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
            return self._throw_away(len(data))
        if self._streaming:
            return self.transport.close()  # a request behind a stream: it would be kept for as long as that lasts
        if self._phase is _Phase.QUIET:
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
        # What would hold us in a circle: the collector comes so rarely that thousands would wait for it.
        self.parser = self.cycle = cast("Any", None)
        self.pipeline.clear()

    # --- the request -------------------------------------------------------------------------------------

    def _feed(self, piece: bytes) -> None:
        """Pieces are so small that what the parser keeps to itself, until a line is whole, is seen in time."""
        self._unheard += len(piece)
        self._received += len(piece)
        self._unset_keepalive_if_required()
        try:
            feed(self, piece)
        except HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("")
        if self._head + self._unheard > HEAD_BYTES and not self._lingering:
            self._refuse(431, "headers_too_large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head = self._unheard = 0
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
        self._unheard = 0
        if self._head > HEAD_BYTES:
            raise ValueError("too long")  # the parser stops there, and `send_400_response` follows

    def on_headers_complete(self) -> None:
        if comes_again(self):
            return
        super().on_headers_complete()
        self._unheard = self._thrown_away = 0
        self._enter(_Phase.BODY)
        cycle = self.cycle
        cycle.message_event = _Event()  # nobody has seen the other one yet
        cycle.transport = cast("asyncio.Transport", _Exit(self))
        extensions = cast("dict[str, Any]", self.scope.setdefault("extensions", {}))
        extensions[EXTENSION] = weakref.ref(cycle)
        if self._full:
            extensions[FULL] = True
        if self._full or cast("State", self.server_state).stopping:
            cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._unheard = 0
        super().on_body(body)
        if self.cycle.response_complete:
            self._throw_away(len(body))

    def on_message_complete(self) -> None:
        if comes_again(self):
            return
        super().on_message_complete()
        self._unheard = 0
        self._phase = _Phase.QUIET
        self._forget_deadline()

    def send_400_response(self, msg: str) -> None:
        if self._head > HEAD_BYTES:
            self._refuse(431, "headers_too_large")
        else:
            self._refuse(400, "invalid_http")

    def _refuse(self, status: int, code: str) -> None:
        """Says so, unless something else is being said already."""
        if self.transport.is_closing():
            return None
        answering = self._answering
        own = answering if self._phase is _Phase.BODY else None  # whoever waits for the rest of what is refused
        if self.pipeline or (answering and (answering.response_started or not own)):
            return self.transport.abort()
        if own or self._phase is not _Phase.BODY:
            self.transport.write(bare_error(status, code))
        return self.hang_up()

    @property
    def _answering(self) -> RequestResponseCycle | None:
        """The newest request, while its answer is not complete."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return None if cycle is None or cycle.response_complete else cycle

    # --- time --------------------------------------------------------------------------------------------

    def _enter(self, phase: _Phase) -> None:
        self._phase = phase
        self._since = self.loop.time()
        self._received = 0
        self._forget_deadline()

    def _watch_request(self) -> None:
        if self._deadline is None and self._phase is not _Phase.QUIET:
            self._deadline = self.loop.call_at(self._due(), self._on_deadline)

    def _due(self) -> float:
        rate = BODY_RATE if self._phase is _Phase.BODY else float("inf")
        return self._since + self.limits.request_time + self._received / rate

    def _on_deadline(self) -> None:
        self._deadline = None
        answering = self._answering
        if answering and (self._phase is _Phase.HEAD or answering.response_started):
            # Something is still being answered: what comes behind it has time.
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

    # --- the end -----------------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        """The next request waits until the peer has taken this answer: one that nobody reads is the only one."""
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

    # --- for api/server/memory.py -------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        return self.transport.get_write_buffer_size()

    def drop(self) -> None:
        self.transport.abort()

    # --- for api/server/wire.py ---------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if not self._lingering and not self.transport.is_closing():
            self.transport.write(data)

    def let_go(self) -> None:
        """The server stops: no further request is waited for. One that has not come yet on a new connection is."""
        if cast("RequestResponseCycle | None", self.cycle) is not None:
            self.shutdown()

    def close_behind_answer(self) -> None:
        """Closes as soon as the answer is out, and the request in or given up."""
        if self._phase is _Phase.BODY:
            self.hang_up()
        else:
            self.transport.close()
            self._watch_flush()

    def hang_up(self) -> None:
        """Ends our side; the connection closes with the peer's, or when LINGER is over."""
        if self._lingering or self.transport.is_closing():
            return
        self._lingering = True
        self._unset_keepalive_if_required()
        self._forget_deadline()
        self._deadline = self.loop.call_later(LINGER, self.transport.abort)
        self.flow.resume_reading()
        self.transport.write_eof()

    def _throw_away(self, length: int) -> None:
        self._thrown_away += length
        if self._thrown_away > LINGER_BYTES:
            self.hang_up()
            self.flow.pause_reading()


class _Exit:
    """What an answer has of its connection: it may write, and ask for the end."""

    def __init__(self, protocol: HttpProtocol) -> None:
        self.protocol = protocol

    def write(self, data: bytes) -> None:
        self.protocol.write(data)

    def is_closing(self) -> bool:
        return self.protocol.transport.is_closing()

    def close(self) -> None:
        self.protocol.close_behind_answer()
