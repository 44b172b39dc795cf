"""OpenAI's chat.completions on top of a generation: the stock SDKs need another `base_url` and key, nothing else."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.access import Access
from api.dialects.chat import CHAT, CHAT_WITH_USAGE
from api.errors import NO_RETRY, JSONResponse, generation_error
from api.routing import by_method, read_request, submit
from api.sse import EventStream
from broker.errors import StorageUnavailable
from broker.feed import Feed
from broker.ids import START, Cursor, parse_cursor
from broker.service import Broker
from broker.store import Generation

Json = dict[str, Any]

STATUS_WAIT = 10.0
"""Seconds that the status line waits for the first chunk, so that a failure keeps a status of its own."""


class ChatCompletions:
    """The handlers of `/v1/chat/completions` and `/v1/models`."""

    def __init__(self, broker: Broker, access: Access) -> None:
        self._broker = broker
        self._access = access

    def routes(self) -> list[Route]:
        path = "/v1/chat/completions"
        return [
            by_method(path, POST=self.create),
            by_method(path + "/{id}", GET=self.get),
            by_method("/v1/models", GET=self.models),
            by_method("/v1/models/{id:path}", GET=self.model),
        ]

    async def create(self, request: Request) -> Response:
        tenant = self._access.tenant(request)
        asked = await read_request(request, self._broker)
        created = await submit(self._broker, request, asked, tenant)
        headers = {"x-generation-id": created.id}
        if created.replayed:
            headers["idempotent-replayed"] = "true"
        async with AsyncExitStack() as stack:
            feed, generation = await stack.enter_async_context(self._broker.hub.open(created.id, tenant))
            if not asked.stream:
                response = await self._whole(request, feed, tenant)
            elif (refused := await self._refusal(feed, tenant)) is not None:
                response = refused
            else:
                position = await self._newest_attempt(feed, generation)
                return self._stream(stack.pop_all(), feed, position, headers, usage=asked.include_usage)
        response.headers.update(headers)
        return response

    def _stream(
        self,
        stack: AsyncExitStack,
        feed: Feed,
        position: Cursor,
        headers: dict[str, str],
        *,
        usage: bool,
        given: bool = False,
    ) -> EventStream:
        return EventStream(
            self._broker.hub,
            stack,
            feed,
            CHAT_WITH_USAGE if usage else CHAT,
            position,
            given=given,
            headers=headers,
            send_timeout=self._broker.settings.send_timeout,
        )

    async def _refusal(self, feed: Feed, tenant: str) -> Response | None:
        """The error answer of a generation that failed before it had anything to say."""
        with suppress(TimeoutError):
            async with asyncio.timeout(STATUS_WAIT):
                await feed.begun()
        if feed.has_chunk or not feed.ended:
            return None
        generation = await self._broker.store.state(feed.gid, tenant)
        return None if generation.status == "completed" else generation_error(generation)

    async def _newest_attempt(self, feed: Feed, generation: Generation) -> Cursor:
        """Where a reader begins who must not see two attempts: right before the newest one."""
        if generation.attempt <= 1:
            return START
        if generation.status == "queued":
            return generation.cursor  # the next attempt begins behind it
        if generation.cursor.seq > 0 or not generation.ended:
            return Cursor(generation.cursor.attempt, -1)
        return await self._broker.store.last_attempt(feed.gid)

    async def _whole(self, request: Request, feed: Feed, tenant: str) -> JSONResponse:
        """Waits for the end, as long as the caller does; the generation goes on without."""
        over = asyncio.ensure_future(feed.over())
        left = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait((over, left), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (over, left):
                task.cancel()
            await asyncio.gather(over, left, return_exceptions=True)
        return _answer(await self._broker.get(feed.gid, tenant=tenant))

    async def get(self, request: Request) -> Response:
        """The stored completion (partial while it runs), or with `?stream=true[&after=CURSOR]` its stream."""
        tenant, gid = self._access.tenant(request), request.path_params["id"]
        if request.query_params.get("stream") != "true":
            return _answer(await self._broker.get(gid, tenant=tenant))
        async with AsyncExitStack() as stack:
            feed, generation = await stack.enter_async_context(self._broker.hub.open(gid, tenant))
            after = request.query_params.get("after") or request.query_params.get("starting_after")
            position = parse_cursor(after) if after else await self._newest_attempt(feed, generation)
            if generation.ended and position >= generation.cursor:
                position = Cursor(generation.cursor.attempt, generation.cursor.seq - 1)  # the end, once more
            usage = request.query_params.get("include_usage") == "true"
            headers = {"x-generation-id": gid}
            return self._stream(stack.pop_all(), feed, position, headers, usage=usage, given=after is not None)
        raise StorageUnavailable  # never: the stack suppresses nothing

    async def models(self, request: Request) -> Response:
        self._access.tenant(request)
        return JSONResponse({"object": "list", "data": [_model(*model) for model in self._named_models()]})

    async def model(self, request: Request) -> Response:
        self._access.tenant(request)
        upstream = self._broker.settings.upstream_for(request.path_params["id"])
        return JSONResponse(_model(request.path_params["id"], upstream.name))

    def _named_models(self) -> list[tuple[str, str]]:
        """What is configured by name; a pattern names none."""
        named: dict[str, str] = {}
        for upstream in self._broker.settings.all_upstreams():
            for model in upstream.models:
                if not set(model) & set("*?["):
                    named.setdefault(model, upstream.name)
        return list(named.items())


def _model(name: str, owner: str) -> Json:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _answer(generation: Generation) -> JSONResponse:
    if generation.status in ("failed", "cancelled"):
        return generation_error(generation)
    return JSONResponse(completion(generation), headers=dict(NO_RETRY) if not generation.ended else None)


def completion(generation: Generation) -> Json:
    """The ChatCompletion; `finish_reason` is null while it runs."""
    return {
        "id": generation.id,
        "object": "chat.completion",
        "created": int(generation.created_at),
        "model": generation.model,
        "choices": [_choice(choice) for choice in generation.choices],
        "usage": generation.usage,
    }


def _choice(choice: Json) -> Json:
    message: Json = {"refusal": None, **choice["message"]}
    if "tool_calls" in message:  # `index` is how the pieces of a stream find each other; a whole call has none
        message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in message["tool_calls"]]
    return {"logprobs": None, **choice, "message": message}
