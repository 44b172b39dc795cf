"""An event stream as a response: headers, body written by the hub, end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.keys import AccessEnd
from api.server.wire import wire_for
from api.streaming.connections import Connections
from api.streaming.reconnect import LIMIT, retry
from broker.errors import LimitExceeded, StorageUnavailable
from broker.fanout.buffer import Slice
from broker.fanout.dialect import Dialect, EndReason
from broker.fanout.feed import Feed
from broker.fanout.subscriber import Wire
from broker.ids import Cursor
from broker.runtime.tracing import span, tracing

HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store, no-transform",
    "x-accel-buffering": "no",  # nginx buffers the response without it
}

# Reasons after which the body is completed. With the others (`left`, `stalled`) the peer takes nothing.
_CLEAN = frozenset(EndReason) - {EndReason.LEFT, EndReason.STALLED}


class LiveResponse(Response):
    """A response that is written while there is something to follow; `followed` is its feed if it follows one
    generation. Closes `stack` at the end."""

    def __init__(
        self,
        stack: AsyncExitStack,
        *,
        followed: Feed | None = None,
        headers: dict[str, str] | None = None,
        send_timeout: float,
    ) -> None:
        super().__init__(None, 200, {**HEADERS, **(headers or {})})
        del self.headers["content-length"]
        self._stack = stack
        self._followed = followed
        self._send_timeout = send_timeout

    async def write_to(self, wire: Wire) -> EndReason:
        """Write the body; return the reason of its end."""
        raise NotImplementedError

    # Not a coroutine itself: that would be one more stack frame per subscriber.
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, scope: Scope, receive: Receive, send: Send
    ) -> Coroutine[Any, Any, EndReason]:
        respond = self._traced if tracing() else self._respond
        return respond(scope, receive, send)

    async def _traced(self, scope: Scope, receive: Receive, send: Send) -> EndReason:
        gid, trace = (self._followed.gid, self._followed.trace) if self._followed else ("", "")
        with span("follow", trace, generation__id=gid) as following:
            reason = await self._respond(scope, receive, send)
            following.note(ended=reason.value)
            return reason

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> EndReason:
        """Send the response and return the reason of its end."""
        async with self._stack:
            wire = wire_for(scope, receive, send)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            reason = await self.write_to(wire)
            try:
                async with asyncio.timeout(self._send_timeout):
                    if reason not in _CLEAN:
                        wire.abort()  # it may have got its closing bytes and still not take what is pending
                    await wire.close()
                    if reason in _CLEAN:
                        # waits until the peer has taken what is pending, without a limit of its own
                        await send({"type": "http.response.body", "body": b"", "more_body": False})
            except TimeoutError:
                wire.abort()
        return reason


class EventStream(LiveResponse):
    """Everything after `position`, framed by `dialect`, preceded by `preface`; ends at `until`, when the reader's
    access ends."""

    def __init__(
        self,
        connections: Connections,
        stack: AsyncExitStack,
        feed: Feed,
        dialect: Dialect,
        position: Cursor,
        *,
        preface: bytes = b"",
        has_received: bool = False,
        until: AccessEnd | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(stack, followed=feed, headers=headers, send_timeout=connections.send_timeout)
        self._connections = connections
        self._feed = feed
        self._dialect: Dialect = dialect
        self._position = position
        self._preface = preface
        self._has_received = has_received
        self._until = until

    async def write_to(self, wire: Wire) -> EndReason:
        if self._preface:
            wire.write(Slice(self._preface, self._position))
        async with self._connections.hub.subscribe(
            self._feed, self._dialect, wire, self._position, has_received=self._has_received
        ) as subscriber:
            with self._connections.expiring(subscriber, self._until):
                return await subscriber.ended


class RetryLater(Response):
    """An event stream that ends at once and asks the reader to reconnect, after a time that depends on the reason. An
    error status would end an EventSource for good."""

    def __init__(self, reason: str, why: object) -> None:
        super().__init__(retry(reason, why), 200, HEADERS)


def retry_later(error: StorageUnavailable | LimitExceeded) -> RetryLater:
    """Return the response that replaces an error status for event streams."""
    return RetryLater(LIMIT if isinstance(error, LimitExceeded) else EndReason.STORAGE, error)
