"""The native routes: create, list, get, cancel and delete generations, and follow the events of one."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Any

from msgspec import UNSET, Raw, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.accept import prefers_json
from api.auth import ReadAccess
from api.dialects.native.frames import NATIVE, bookmark, unknown_cursor
from api.dialects.native.paced import Replay, parse_speed
from api.errors import JSONResponse
from api.query import (
    check_known,
    choice_of,
    last_event_id_of,
    list_of,
    number_of,
    pairs_of,
    text_of,
    time_of,
    whole_of,
)
from api.requests import by_method, read_body, read_request, submit
from api.server.memory import reserve
from api.streaming.cursors import resolve_cursor
from api.streaming.follow import Follow, Respond, Start, or_retry_later
from api.streaming.response import HEADERS
from broker import records
from broker.auth.stream_tokens import LONGEST
from broker.broker import DEFAULT_LIMIT, LIST_LIMIT, Broker
from broker.errors import InvalidCursor
from broker.fanout.feed import Feed
from broker.generation import Generation, queued
from broker.ids import START, Cursor, parse_cursor
from broker.request.body import parse_json, ttl_of

DEFAULT_EVENTS, EVENTS_LIMIT = 100, 1000
"""Events in a page of a log: the default and the maximum."""
Json = dict[str, Any]
LIST_PARAMETERS = (
    *("status", "model", "code", "group", "upstream", "metadata[]", "search"),
    *("since", "until", "created_after", "created_before", "limit", "after", "tenant"),
)


class GenerationRoutes:
    """The handlers of `/v1/generations…`."""

    def __init__(self, broker: Broker, follow: Follow) -> None:
        self._broker = broker
        self._follow = follow
        self._access = follow.access

    def routes(self) -> list[Route]:
        one = "/v1/generations/{id}"
        return [
            by_method("/v1/generations", GET=self.list, POST=self.create),
            by_method(one, GET=self.get, DELETE=self.delete),
            by_method(f"{one}/cancel", POST=self.cancel),
            by_method(f"{one}/events", GET=self.events),
            by_method(f"{one}/token", POST=self.token),
            by_method(f"{one}/deliveries", GET=self.deliveries),
            by_method(f"{one}/deliveries/{{n}}/redeliver", POST=self.redeliver),
        ]

    async def create(self, request: Request) -> Response:
        tenant = self._access.tenant(request)
        asked = await read_request(request, self._broker, tenant)
        created = await submit(self._broker, request, asked, tenant, self._broker.settings.queue_timeout)
        headers = {"location": f"/v1/generations/{created.id}", "x-generation-id": created.id}
        if created.replayed:
            headers["idempotent-replayed"] = "true"
            async with reserve(request, tenant, partial(self._broker.store.size, created.id)):
                generation = await self._broker.get(created.id, tenant)
                return JSONResponse(self._record(request, generation), HTTPStatus.OK, headers)
        new = queued(created.id, asked, self._broker.settings.lane_of(asked.model), tenant)
        return JSONResponse(self._record(request, new), HTTPStatus.ACCEPTED, headers)

    def _record(
        self, request: Request, generation: Generation, body: Json | UnsetType | None = UNSET
    ) -> records.Generation:
        return generation.record(body, named=self._access.names_tenants(request))

    async def list(self, request: Request) -> Response:
        tenant, named = self._access.scope(request), self._access.names_tenants(request)
        check_known(request, *LIST_PARAMETERS)
        async with reserve(request, tenant):
            page = await self._broker.list(
                status=list_of(request, "status"),
                model=text_of(request, "model"),
                code=text_of(request, "code"),
                group=text_of(request, "group"),
                upstream=text_of(request, "upstream"),
                metadata=pairs_of(request, "metadata"),
                search=text_of(request, "search"),
                since=time_of(request, "since", "created_after"),
                until=time_of(request, "until", "created_before"),
                limit=whole_of(request, "limit", DEFAULT_LIMIT, LIST_LIMIT),
                after=text_of(request, "after"),
                tenant=tenant,
            )
            rows = [one.summary(named=named) for one in page.data]
            return JSONResponse(records.GenerationList(rows, page.has_more, page.last_id))

    async def get(self, request: Request) -> Response:
        """Return one generation; with `include=request` also its request. That, and the first line of the prompt, need
        an API key: stream tokens are given to readers of the answer, who may not be allowed to see the prompt."""
        gid, include = request.path_params["id"], choice_of(request, "include", "request", empty=True)
        reader = (
            ReadAccess(await self._access.owner(request, gid)) if include else await self._access.reader(request, gid)
        )
        async with reserve(request, reader.tenant, partial(self._broker.store.size, gid)):
            generation = await self._broker.get(gid, tenant=reader.tenant)
            body = await self._broker.store.request(gid) if include else UNSET
            shown = generation if reader.until is None else replace(generation, prompt=None)
            return JSONResponse(self._record(request, shown, body))

    async def cancel(self, request: Request) -> Response:
        gid = request.path_params["id"]
        tenant = await self._access.owner(request, gid)
        await self._broker.end(gid, tenant)
        async with reserve(request, tenant, partial(self._broker.store.size, gid)):
            return JSONResponse(self._record(request, await self._broker.get(gid, tenant)))

    async def delete(self, request: Request) -> Response:
        gid = request.path_params["id"]
        await self._broker.delete(gid, tenant=await self._access.owner(request, gid))
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def token(self, request: Request) -> Response:
        """Issue a stream token, for clients that cannot send a key, to read this generation. `events_url` is relative
        to the gateway's origin."""
        gid = request.path_params["id"]
        tenant = await self._access.owner(request, gid)
        body = await read_body(request, self._broker.settings.max_body)
        seconds = ttl_of(parse_json(body), LONGEST) if body else None
        await self._broker.store.state(gid, tenant)
        token, expires_at = await self._broker.tokens.issue(gid, tenant, seconds or LONGEST)
        events_url = f"/v1/generations/{gid}/events?token={token}"
        return JSONResponse(records.Token(token, expires_at, events_url))

    async def deliveries(self, request: Request) -> Response:
        gid = request.path_params["id"]
        return JSONResponse(await self._broker.deliveries(gid, await self._access.owner(request, gid)))

    async def redeliver(self, request: Request) -> Response:
        gid = request.path_params["id"]
        tenant = await self._access.owner(request, gid)
        number = number_of(request.path_params["n"])
        return JSONResponse(await self._broker.redeliver(gid, number, tenant), HTTPStatus.ACCEPTED)

    async def events(self, request: Request) -> Response:
        """Stream the events, or return a page of them as JSON. Trouble of the gateway never gives a stream an error
        status: EventSource would not reconnect."""
        gid = request.path_params["id"]
        if prefers_json(request.headers):
            return await self._page(request, gid)
        if request.method == "HEAD":
            reader = await self._access.reader(request, gid)
            await self._broker.store.state(gid, reader.tenant)
            return Response(headers=HEADERS)
        return await or_retry_later(self._stream(request, gid))

    async def _stream(self, request: Request, gid: str) -> Response:
        access = await self._follow.reader(request, gid)
        text = text_of(request, "speed", empty=True)
        speed = None if text is None else parse_speed(text)

        async def begin(feed: Feed, generation: Generation) -> Start | Respond | Response:
            position, preface = await self._begin(request, feed, generation)
            if generation.ended and position >= generation.cursor:
                return Response(status_code=HTTPStatus.NO_CONTENT)
            start = Start(feed, NATIVE, position, preface)
            return start if speed is None else partial(self._replay, start, speed)

        return self._follow.draining or await self._follow.generation(access, gid, begin, {"x-generation-id": gid})

    def _replay(self, start: Start, speed: float, stack: AsyncExitStack, access: ReadAccess) -> Response:
        return Replay(self._follow.connections, self._broker.store, stack, start, speed, until=access.until)

    async def _begin(self, request: Request, feed: Feed, generation: Generation) -> tuple[Cursor, bytes]:
        """Return where the reader wants to begin, and the bytes to send first."""
        last, query = last_event_id_of(request), text_of(request, "after")
        if last:
            try:
                wanted = parse_cursor(last)
            except InvalidCursor:
                return START, unknown_cursor(generation.attempt)
        elif query == "latest":
            return feed.tail, bookmark(feed.tail)
        elif query:
            wanted = parse_cursor(query)
        else:
            return START, b""
        position = await resolve_cursor(self._broker.store, wanted, generation)
        return (START, unknown_cursor(generation.attempt)) if position is None else (position, b"")

    async def _page(self, request: Request, gid: str) -> Response:
        reader = await self._access.reader(request, gid)
        await self._broker.store.state(gid, reader.tenant)
        after = parse_cursor(last_event_id_of(request) or text_of(request, "after") or str(START))
        limit = whole_of(request, "limit", DEFAULT_EVENTS, EVENTS_LIMIT)
        async with reserve(request, reader.tenant):
            events, has_more = await self._broker.store.bounded_page(gid, after, limit)
            rows = [records.Event(str(one.cursor), one.name, one.at_ms, Raw(one.data)) for one in events]
            return JSONResponse(records.EventPage(rows, has_more))
