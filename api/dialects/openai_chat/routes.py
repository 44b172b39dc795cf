"""OpenAI's chat.completions on top of a generation: the stock SDKs need only another `base_url` and key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.auth import ReadAccess
from api.dialects.openai_chat.frames import Chat, chat_dialect
from api.errors import NO_RETRY, JSONResponse, draining_error, generation_error, on_broker_error
from api.query import flag_of, text_of
from api.requests import by_method, read_request, submit
from api.server.memory import reserve
from api.streaming.cursors import newest_attempt, position_in_attempt
from api.streaming.follow import Follow, Start
from broker.broker import Broker
from broker.completion.fold import finish_reason
from broker.completion.merging import as_call
from broker.completion.text import json_text
from broker.concurrency.cancellation import cancel_and_wait
from broker.errors import BrokerError, StorageUnavailable
from broker.fanout.feed import Feed
from broker.generation import Generation
from broker.request.body import CompletionRequest

Json = dict[str, Any]

EXPIRE_TRIES, EXPIRE_PAUSE = 10, 0.05  # seconds
LOOK_PERIOD = 1.0  # seconds between two looks at the upstreams that a generation waits for
STATUS_WAIT = 10.0
"""Seconds that the status line waits for the first chunk, so that a failure has its own status."""


class ChatCompletionRoutes:
    """The handlers of `/v1/chat/completions`."""

    def __init__(self, broker: Broker, follow: Follow) -> None:
        self._broker = broker
        self._follow = follow
        self._access = follow.access
        self._connections = follow.connections

    def routes(self) -> list[Route]:
        path = "/v1/chat/completions"
        return [
            by_method(path, POST=self.create),
            by_method(path + "/{id}", GET=self.get),
        ]

    async def create(self, request: Request) -> Response:
        tenant = self._access.tenant(request)
        bare = flag_of(request, "bare")
        asked = await read_request(request, self._broker, tenant)
        if self._connections.draining:
            return draining_error({"retry-after": "1"})  # another gateway takes it
        self._access.subscribers.check(tenant)
        created = await submit(self._broker, request, asked, tenant, self._broker.settings.retry_budget)
        headers = {"x-generation-id": created.id}
        if created.replayed:
            headers["idempotent-replayed"] = "true"
        try:
            dialect = chat_dialect(usage=asked.include_usage, bare=bare)
            return await self._reply(request, asked, created.id, tenant, headers, dialect)
        except BrokerError as error:
            response = await on_broker_error(request, error)
            response.headers.update({**headers, **NO_RETRY})
            return response

    async def _reply(
        self,
        request: Request,
        asked: CompletionRequest,
        gid: str,
        tenant: str,
        headers: dict[str, str],
        dialect: Chat,
    ) -> Response:
        """Return the response to an accepted generation, streamed or whole as requested."""

        async def begin(feed: Feed, generation: Generation) -> Start | Response:
            async with self._expire_in_time(generation):
                if not asked.stream:
                    return await self._whole(request, feed, tenant)
                refused = await self._refusal(feed, tenant)
            return refused or Start(feed, dialect, await newest_attempt(self._broker.store, generation))

        response = await self._follow.generation(ReadAccess(tenant), gid, begin)
        response.headers.update(headers)
        return response

    @asynccontextmanager
    async def _expire_in_time(self, generation: Generation) -> AsyncGenerator[None]:
        """End a generation whose waiting has lasted too long while the block runs: reapers look every two seconds, and
        the caller would no longer get the error's status. One whose upstreams take no call before its deadline ends at
        once, so that the caller can do something else in the meantime."""
        if generation.deadline is None:
            yield
            return

        async def expire(deadline: float) -> None:
            while (left := deadline - await self._broker.store.clock.now()) > 0:
                with suppress(StorageUnavailable):
                    next_try = await self._broker.waiting.late_try(generation)
                    if next_try and await self._broker.expire(generation.id, next_try):
                        return
                await asyncio.sleep(min(left, LOOK_PERIOD))
            for _ in range(EXPIRE_TRIES):  # Redis's clock is only estimated, and may be a few ms behind
                with suppress(StorageUnavailable):
                    if await self._broker.expire(generation.id):
                        return
                await asyncio.sleep(EXPIRE_PAUSE)

        task = asyncio.create_task(expire(generation.deadline))
        try:
            yield
        finally:
            await cancel_and_wait((task,))

    async def _refusal(self, feed: Feed, tenant: str) -> Response | None:
        """Return the error of a generation that failed before its first chunk; None if it did not."""
        drained = await self._connections.wait(feed.wait_first_chunk(), timeout=STATUS_WAIT)
        if feed.has_chunk:
            return None
        if drained:
            return draining_error(NO_RETRY)
        if not feed.ended:
            return None
        generation = await self._broker.store.state(feed.gid, tenant)
        return generation_error(generation) if generation.status in ("failed", "cancelled") else None

    async def _whole(self, request: Request, feed: Feed, tenant: str) -> Response:
        """Wait for the end as long as the caller does; the generation continues without the caller."""
        drained = await self._connections.wait(_disconnected(request), feed.wait_ended())
        if drained and not feed.ended:
            return draining_error(NO_RETRY)
        async with reserve(request, tenant, partial(self._broker.store.size, feed.gid)):
            generation = await self._broker.get(feed.gid, tenant=tenant)
            if feed.ended and not generation.ended:
                raise StorageUnavailable
            return _completion_or_error(generation)

    async def get(self, request: Request) -> Response:
        """Return the stored completion (partial while it runs), or its stream with `?stream=true[&after=CURSOR]`."""
        gid = request.path_params["id"]
        reader = await self._access.reader(request, gid)
        stream, bare = flag_of(request, "stream"), flag_of(request, "bare")
        usage = flag_of(request, "include_usage")
        if not stream or request.method == "HEAD":
            async with reserve(request, reader.tenant, partial(self._broker.store.size, gid)):
                return _completion_or_error(await self._broker.get(gid, tenant=reader.tenant))

        async def begin(feed: Feed, generation: Generation) -> Start:
            after = text_of(request, "after") or text_of(request, "starting_after")
            store = self._broker.store
            resume = position_in_attempt(store, after, generation) if after else newest_attempt(store, generation)
            position = await resume
            has_received = after is not None and position.attempt > 0 and position.seq > 0
            dialect = chat_dialect(usage=usage, bare=bare)
            return Start(feed, dialect, position, has_received=has_received)

        return await self._follow.generation(reader, gid, begin, {"x-generation-id": gid})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _completion_or_error(generation: Generation) -> JSONResponse:
    if generation.status in ("failed", "cancelled"):
        return generation_error(generation)
    return JSONResponse(completion(generation))


def completion(generation: Generation) -> Json:
    """Return the ChatCompletion; `finish_reason` is null while it runs."""
    return {
        "id": generation.id,
        "object": "chat.completion",
        "created": int(generation.created_at),
        "model": generation.model,
        "choices": [_choice(choice, ended=generation.ended) for choice in generation.choices],
        "usage": generation.usage,
    }


def _choice(choice: Json, *, ended: bool) -> Json:
    """Return a choice as OpenAI's types define it, whatever the upstream sent."""
    message = _message(_object(choice.get("message")))
    reason = finish_reason(choice.get("finish_reason"))
    if reason is None and ended:  # some upstreams send only [DONE], but null means that it runs
        reason = "tool_calls" if "tool_calls" in message else "stop"
    logprobs = _object(choice.get("logprobs")) or None
    return {**choice, "logprobs": logprobs, "message": message, "finish_reason": reason}


def _message(merged: Json) -> Json:
    message: Json = {"refusal": None, "role": "assistant", "content": None, **merged}
    for name in ("content", "refusal"):
        if not isinstance(message[name], str | list | None):
            message[name] = json_text(message[name])
    if not isinstance(message["role"], str) or not message["role"]:
        message["role"] = "assistant"
    calls = [_call(call) for call in _objects(message.pop("tool_calls", None))]
    if calls:  # a message without calls has no `tool_calls`: SDK users test for the key
        message["tool_calls"] = calls
    if "function_call" in message and not _object(message["function_call"]):
        del message["function_call"]
    return message


def _call(call: Json) -> Json:
    """Return a whole call, without `index`, which only assembles the pieces of a stream."""
    whole = {"id": "", **{key: value for key, value in as_call(call).items() if key != "index"}}
    whole["id"] = _string(whole["id"])
    kind, said = "function", "arguments"
    if _object(whole.get("custom")) and not _object(whole.get("function")):
        whole.pop("function", None)
        kind, said = "custom", "input"
    body = _object(whole.get(kind))
    whole["type"] = whole.get("type") or kind
    whole[kind] = {**body, "name": _string(body.get("name")), said: _string(body.get(said))}
    return whole


def _string(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json_text(value)


def _object(value: object) -> Json:
    return cast(Json, value) if isinstance(value, dict) else {}


def _objects(value: object) -> list[Json]:
    """Return the objects of a list, or a single object without a list."""
    values = cast("list[object]", value) if isinstance(value, list) else [value]
    return [cast(Json, item) for item in values if isinstance(item, dict) and item]
