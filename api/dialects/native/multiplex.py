"""`GET /v1/events`: many generations on one connection, for a page that shows ten of them while a browser allows six
connections.

The hub has one subscriber per generation, and all write to one wire: what is pending there holds all of them back, so
together they buffer no more than one would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.dialects.native.multiplex_frames import MultiplexedNative, VectorCursor, parse_vector_cursor
from api.dialects.native.shared_wire import GenerationShare, SharedWire, WireShare
from api.keys import AccessEnd
from api.query import last_event_id_of, text_of, texts_of
from api.requests import by_method
from api.streaming.connections import Connections
from api.streaming.cursors import resolve_cursor
from api.streaming.follow import Follow, or_retry_later
from api.streaming.response import HEADERS, LiveResponse
from broker.broker import Broker
from broker.errors import (
    BrokerError,
    GenerationGone,
    GenerationNotFound,
    InvalidRequest,
)
from broker.fanout.buffer import Slice
from broker.fanout.dialect import EndReason
from broker.fanout.feed import Feed
from broker.fanout.memory_feed import FIRST, MemoryFeed
from broker.fanout.subscriber import Subscriber, Wire
from broker.ids import START, Cursor, parse_cursor

MAX_GENERATIONS = 100  # generations per connection


LATEST, UNKNOWN = Cursor(-1, 0), Cursor(-1, 1)
"""In place of a cursor: from now on; and a cursor that cannot be of any log."""


@dataclass(slots=True)
class StreamPosition:
    """One generation on a stream: its first frames, and its feed to be read after `cursor` if more may follow. A cursor
    of None means that `gone` was the last event."""

    dialect: MultiplexedNative
    cursor: Cursor | None
    feed: Feed | None = None
    preface: bytes = b""
    missing: BrokerError | None = None
    until: AccessEnd | None = None


class MultiplexRoutes:
    """The handler of `/v1/events?generation=ID[@CURSOR]&generation=…`, where CURSOR may be `latest`.

    An id that is unknown, another tenant's, deleted or expired yields one `gone` event and does not affect the others;
    only a first request that names no other id is refused with 404 or 410. `Last-Event-ID` overrides all `@CURSOR`; one
    that does not belong to this URL causes a `reset` and the whole logs. No id, more than 100 ids, or a malformed
    `@CURSOR`: 400. A repeated id counts once. Each generation counts as one of the tenant's subscribers.
    """

    def __init__(self, broker: Broker, follow: Follow) -> None:
        self._broker = broker
        self._follow = follow

    def routes(self) -> list[Route]:
        return [by_method("/v1/events", GET=self.events)]

    async def events(self, request: Request) -> Response:
        if not text_of(request, "token"):
            self._follow.access.tenant(request)
        named = parse_generations(texts_of(request, "generation"))
        if request.method == "HEAD":
            return Response(headers=HEADERS)
        return self._follow.draining or await or_retry_later(self._stream(request, named))

    async def _stream(self, request: Request, named: dict[str, Cursor]) -> Response:
        gids, last = list(named), last_event_id_of(request)
        wanted: Sequence[Cursor | None] = list(named.values())
        if last:
            wanted = parse_vector_cursor(last, gids) or [UNKNOWN] * len(gids)
        async with AsyncExitStack() as stack:
            opening = (self._open(request, stack, *one) for one in zip(gids, wanted, strict=True))
            opened = await asyncio.gather(*opening, return_exceptions=True)  # all, so that the stack closes each
            positions = [_or_raise(one) for one in opened]
            refused = [one.missing for one in positions if one.missing is not None]
            if len(refused) == len(positions) and not last:
                raise refused[0]
            if not any(one.feed or one.preface for one in positions):
                return Response(status_code=HTTPStatus.NO_CONTENT)
            return Multiplex(self._follow.connections, stack.pop_all(), positions, bookmark=LATEST in wanted)
        raise AssertionError("unreachable")

    async def _open(self, request: Request, stack: AsyncExitStack, gid: str, wanted: Cursor | None) -> StreamPosition:
        dialect = MultiplexedNative(gid)
        if wanted is None:
            return StreamPosition(dialect, None)
        try:
            access = await self._follow.reader(request, gid)
            feed, generation = await self._follow.enter(stack, access, gid)
        except (GenerationNotFound, GenerationGone) as error:
            return StreamPosition(dialect, None, preface=dialect.gone(max(wanted, START)), missing=error)
        position = feed.tail if wanted == LATEST else None
        if wanted.attempt >= 0:
            position = await resolve_cursor(self._broker.store, wanted, generation)
        if position is None:
            preface = dialect.unknown_cursor(generation.attempt)
            return StreamPosition(dialect, START, feed, preface, until=access.until)
        over = generation.ended and position >= generation.cursor
        return StreamPosition(dialect, position, None if over else feed, until=access.until)


def parse_generations(named: Sequence[str]) -> dict[str, Cursor]:
    """Return the ids and the cursor after which each is to be read. Raises InvalidRequest, InvalidCursor."""
    found: dict[str, Cursor] = {}
    for text in named:
        gid, _, cursor = text.partition("@")
        wanted = LATEST if cursor == "latest" else parse_cursor(cursor) if cursor else START
        found.setdefault(gid, wanted)
    if not 1 <= len(found) <= MAX_GENERATIONS:
        raise InvalidRequest(f"`generation` must name from 1 to {MAX_GENERATIONS} generations.", param="generation")
    return found


def _or_raise(one: StreamPosition | BaseException) -> StreamPosition:
    if isinstance(one, BaseException):
        raise one
    return one


class Multiplex(LiveResponse):
    """The stream. `bookmark`: begin with an `id:`, so that a reconnect before the first event loses nothing."""

    def __init__(
        self, connections: Connections, stack: AsyncExitStack, positions: Sequence[StreamPosition], *, bookmark: bool
    ) -> None:
        super().__init__(stack, send_timeout=connections.send_timeout)
        self._connections = connections
        self._hub = connections.hub
        self._positions = positions
        self._vector = VectorCursor([one.dialect.gid for one in positions], [one.cursor for one in positions])
        self._bookmark = bookmark
        self._until = min((one.until for one in positions if one.until is not None), default=None)

    async def write_to(self, wire: Wire) -> EndReason:
        preface = b"".join(one.preface for one in self._positions)
        if preface or self._bookmark:
            wire.write(Slice(self._vector.sign(preface or b"\n"), FIRST))
        shared = SharedWire(wire)
        async with AsyncExitStack() as stack:
            # A subscriber of an empty feed: `Connections` ends it on drain, and its dialect writes heartbeats and the
            # end for the whole stream.
            watch = await stack.enter_async_context(
                self._hub.subscribe(MemoryFeed("", self._vector), self._vector, WireShare(shared), FIRST)
            )
            running: dict[asyncio.Future[EndReason], int] = {}
            for at, position in enumerate(self._positions):
                if position.feed is not None and position.cursor is not None:
                    share = GenerationShare(shared, self._vector, at, position.feed)
                    subscriber = await stack.enter_async_context(
                        self._hub.subscribe(position.feed, position.dialect, share, position.cursor)
                    )
                    running[subscriber.ended] = at
            with self._connections.expiring(watch, self._until):
                return await self._until_all_ended(wire, watch, running)

    def _tell_gone(self, wire: Wire, at: int) -> None:
        position, last = self._positions[at], self._vector.cursors[at]
        self._vector.cursors[at] = None
        wire.write(Slice(self._vector.sign(position.dialect.gone(last or START)), FIRST))

    async def _until_all_ended(
        self, wire: Wire, watch: Subscriber, running: dict[asyncio.Future[EndReason], int]
    ) -> EndReason:
        while running:
            done, _ = await asyncio.wait((*running, watch.ended), return_when=asyncio.FIRST_COMPLETED)
            for ended in done - {watch.ended}:
                at, reason = running.pop(ended), ended.result()
                if reason is EndReason.GONE:
                    self._tell_gone(wire, at)
                elif reason in (EndReason.LEFT, EndReason.STALLED):
                    watch.end(reason)
                elif reason is not EndReason.ENDED:
                    self._hub.end(watch, reason)
            if watch.ended.done():
                return watch.ended.result()
        return EndReason.ENDED
