"""The one place that opens a stream: access → quota → feed → cursor → response."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import HTTPConnection
from starlette.responses import Response

from api.auth import Access, ReadAccess
from api.errors import IS_DRAINING
from api.streaming.connections import Connections
from api.streaming.response import EventStream, RetryLater, retry_later
from broker.errors import LimitExceeded, StorageUnavailable
from broker.fanout.dialect import Dialect, EndReason
from broker.fanout.feed import Feed
from broker.fanout.hub import Hub
from broker.generation import Generation
from broker.ids import Cursor

Opened = TypeVar("Opened")
Respond = Callable[[AsyncExitStack, ReadAccess], Response]
"""Makes the response, which closes the stack at its end."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where a stream begins: everything after `position`, framed by `dialect`, preceded by `preface`. `has_received`:
    the reader has received a part of this attempt before."""

    feed: Feed
    dialect: Dialect
    position: Cursor
    preface: bytes = b""
    has_received: bool = False


class Follow:
    """Opens streams, for all dialects."""

    def __init__(self, hub: Hub, access: Access, connections: Connections) -> None:
        self._hub = hub
        self.access = access
        self.connections = connections

    @property
    def draining(self) -> Response | None:
        """The response to an EventSource while the gateway drains; None at other times."""
        return RetryLater(EndReason.DRAINING, IS_DRAINING) if self.connections.draining else None

    async def reader(self, request: HTTPConnection, gid: str) -> ReadAccess:
        """Check the key or the token. Raises what `Access.reader` raises."""
        return await self.access.reader(request, gid)

    async def enter(self, stack: AsyncExitStack, access: ReadAccess, gid: str) -> tuple[Feed, Generation]:
        """Count a subscriber and open the generation's feed, until the stack is closed. Raises LimitExceeded and what
        `Hub.open` raises."""
        return await self._enter(stack, access, gid, self._hub.open(gid, access.tenant))

    async def generation(
        self,
        access: ReadAccess,
        gid: str,
        begin: Callable[[Feed, Generation], Awaitable[Start | Respond | Response]],
        headers: dict[str, str] | None = None,
    ) -> Response:
        """Follow one generation. `begin` resolves the cursor; it may return a response instead, or make its own.
        `headers` are added to those of an event stream and take precedence, such as another `content-type`. Raises
        LimitExceeded and what `Hub.open` raises."""
        source = self._hub.open(gid, access.tenant)
        return await self.source(access, gid, source, lambda opened: begin(*opened), headers)

    async def source(
        self,
        access: ReadAccess,
        gid: str,
        source: AbstractAsyncContextManager[Opened],
        begin: Callable[[Opened], Awaitable[Start | Respond | Response]],
        headers: dict[str, str] | None = None,
    ) -> Response:
        """Follow any source of a feed, as `generation` does."""
        async with AsyncExitStack() as stack:
            start = await begin(await self._enter(stack, access, gid, source))
            if isinstance(start, Response):
                return start
            if isinstance(start, Start):
                return self._respond(start, stack.pop_all(), access, headers)
            return start(stack.pop_all(), access)
        raise AssertionError("unreachable: the stack suppresses nothing")

    async def _enter(
        self, stack: AsyncExitStack, access: ReadAccess, gid: str, source: AbstractAsyncContextManager[Opened]
    ) -> Opened:
        stack.enter_context(self.access.subscribers.one(access.caller or access.tenant, gid))
        return await stack.enter_async_context(source)

    def _respond(
        self, start: Start, stack: AsyncExitStack, access: ReadAccess, headers: dict[str, str] | None
    ) -> EventStream:
        return EventStream(
            self.connections,
            stack,
            start.feed,
            start.dialect,
            start.position,
            preface=start.preface,
            has_received=start.has_received,
            until=access.until,
            headers=headers,
        )


async def or_retry_later(opening: Awaitable[Response]) -> Response:
    """Return the response to an EventSource, which must not get an error status for trouble of the gateway: it would
    not reconnect."""
    try:
        return await opening
    except (StorageUnavailable, LimitExceeded) as error:
        return retry_later(error)
