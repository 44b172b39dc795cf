"""One event stream as a response: headers, the hub writes, the end."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.wire import wire_for
from broker.feed import Feed
from broker.hub import Hub
from broker.ids import Cursor
from broker.segments import Dialect, Slice

HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store, no-transform",
    "x-accel-buffering": "no",  # nginx holds an answer back without it
}

# What ends a response as it should end. The rest (`left`, `stalled`) has nobody to end it for.
_CLEAN = frozenset({"ended", "reset", "draining", "storage", "gone"})


class EventStream(Response):
    """Everything behind `position`, framed by `dialect`, after `preface`. Closes `stack` when it is over."""

    def __init__(
        self,
        hub: Hub,
        stack: AsyncExitStack,
        feed: Feed,
        dialect: Dialect,
        position: Cursor,
        *,
        preface: bytes = b"",
        given: bool = False,
        headers: dict[str, str] | None = None,
        send_timeout: float,
    ) -> None:
        super().__init__(None, 200, {**HEADERS, **(headers or {})})
        del self.headers["content-length"]
        self._hub = hub
        self._stack = stack
        self._feed = feed
        self._dialect: Dialect = dialect
        self._position = position
        self._preface = preface
        self._given = given
        self._send_timeout = send_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack:
            wire = wire_for(scope, receive, send)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if self._preface:
                wire.write(Slice(self._preface, self._position))
            async with self._hub.subscribe(
                self._feed, self._dialect, wire, self._position, given=self._given
            ) as subscriber:
                reason = await subscriber.ended
            try:
                async with asyncio.timeout(self._send_timeout):
                    await wire.close()
                    if reason in _CLEAN:
                        # waits for the peer to take what is pending, and has no limit of its own
                        await send({"type": "http.response.body", "body": b"", "more_body": False})
            except TimeoutError:
                wire.abort()
                await asyncio.sleep(0)  # the server learns of it in its next turn, and must before we return


class Later(Response):
    """An event stream that ends at once: come back. An error status would end an EventSource for good."""

    def __init__(self, retry: bytes) -> None:
        super().__init__(retry, 200, HEADERS)
