"""Calls the upstream and yields what it streams, as checked chunks. The only file that knows the openai SDK.

The SDK sends the request; its raw bytes are split here: its chunk objects cost 113 µs each and die of what some
upstreams send, bytes over its aiohttp transport cost 2 µs (11 over httpx2).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import httpx2
import openai

from broker.errors import ModelNotFound
from broker.settings import Settings, Upstream
from worker.chunks import BadChunk, Chunk, examine
from worker.failures import UpstreamError, answered, broken, reported
from worker.sse import LineTooLong, SseSplitter
from worker.upstream_client import FAMILIES, connection_failure, new_client, read_models

Json = dict[str, Any]

AFTERMATH = 0.1  # seconds a connection has to end its response after [DONE], so that it can be used again


class Upstreams:
    """The clients of all upstreams of this process. An async context manager: leaving it closes them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._upstreams = settings.all_upstreams()
        self._clients: dict[str, openai.AsyncOpenAI] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Upstreams:
        for upstream in self._upstreams:
            self._clients[upstream.name] = new_client(upstream, self._settings.slots)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        for client in self._clients.values():
            await client.close()

    @asynccontextmanager
    async def open(self, model: str, body: Json) -> AsyncGenerator[UpstreamStream]:
        """The upstream's answer. UpstreamError from here, and from its iteration. Leaving the block closes it."""
        upstream = self._upstream(model)
        silence = Silence(self._settings.first_token_timeout, self._settings.idle_timeout)
        try:
            async with silence:
                response = await self._respond(upstream, body)
                stream = UpstreamStream(response, silence, int(body.get("n") or 1), upstream.api_key)
                try:
                    yield stream
                finally:
                    await self._close(stream)
        except TimeoutError:
            if not silence.expired:
                raise
            raise UpstreamError("upstream_timeout", silence.complaint) from None

    def by_pattern(self) -> list[Upstream]:
        """Those that can be asked, and whose models are not all named."""
        return [
            upstream for upstream in self._upstreams if upstream.usable and len(upstream.named) < len(upstream.models)
        ]

    async def models(self, upstream: Upstream) -> list[str]:
        """The names of the models that the upstream lists. UpstreamError, whose message is in our own words."""
        return await read_models(self._clients[upstream.name])

    def _upstream(self, model: str) -> Upstream:
        for upstream in self._upstreams:
            if upstream.serves(model):
                if upstream.usable:
                    return upstream
                raise UpstreamError("upstream_auth", f"{' and '.join(upstream.missing)} is not set at the worker.")
        raise UpstreamError(
            ModelNotFound.code, "No upstream of this worker serves the model.", status=404, param="model"
        )

    async def _respond(self, upstream: Upstream, body: Json) -> openai.AsyncAPIResponse[Any]:
        """The response's headers have come and are a stream's. A 400 that names the usage option, which not every
        server knows, is repeated once without."""
        sent = _with_usage(body) if upstream.usage else _without_usage(body)
        try:
            return await self._request(upstream, sent)
        except UpstreamError as error:
            if error.status != 400 or "stream_options" not in sent or not _names_usage(error):
                raise
        return await self._request(upstream, _without_usage(body, whole=True))

    async def _request(self, upstream: Upstream, body: Json) -> openai.AsyncAPIResponse[Any]:
        completions = self._clients[upstream.name].chat.completions
        try:
            # The whole body as extra_body: it is merged over the rest, so parameters the SDK does not know pass.
            request = completions.with_streaming_response.create(
                model=body["model"], messages=[], stream=True, extra_body={**body, "stream": True}
            )
            response = await request.__aenter__()
        except FAMILIES as error:
            raise _classified(error, upstream.api_key) from error
        content_type = response.headers.get("content-type", "")
        if content_type.partition(";")[0].strip().lower() != "text/event-stream":
            await _shut(response)
            raise UpstreamError("bad_upstream_response", "The upstream answered with something else than a stream.")
        return response

    async def _close(self, stream: UpstreamStream) -> None:
        """At once, unless the stream came to its end: then its connection gets a moment to become free."""
        if not stream.done:
            await _shut(stream.response)
            return
        task = asyncio.create_task(_drain(stream))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


class UpstreamStream:
    """Iterates over lists of chunks: those that one read completed."""

    def __init__(
        self, response: openai.AsyncAPIResponse[Any], silence: Silence, choices: int, api_key: str | None
    ) -> None:
        self.response = response
        self.reads = response.iter_bytes()
        self.done = False
        self._splitter = SseSplitter()
        self._silence = silence
        self._choices = choices
        self._api_key = api_key
        self._finished: set[int] = set()
        self._seen = False
        self._error: UpstreamError | None = None

    def __aiter__(self) -> UpstreamStream:
        return self

    async def __anext__(self) -> list[Chunk]:
        if self.done:
            raise StopAsyncIteration
        self._silence.listen()
        while self._error is None:
            try:
                read = await anext(self.reads)
            except StopAsyncIteration:
                self._ended()
                break
            except FAMILIES as error:
                self._error = _broken_off(error, begun=self._seen)
                break
            chunks = self._chunks(read)
            if chunks:
                self._seen = True
                self._silence.heard()
                return chunks
            if self.done:
                break
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # which holds this frame: a circle
        if not self._seen:
            raise UpstreamError("bad_upstream_response", "The upstream's stream was empty.")
        raise StopAsyncIteration

    def _chunks(self, read: bytes) -> list[Chunk]:
        """What this read completes, as far as it is good; what is not becomes the error of the next turn."""
        chunks: list[Chunk] = []
        try:
            for payload in self._splitter.feed(read):
                if payload == b"[DONE]" or payload.strip() == b"[DONE]":
                    self.done = True
                    break
                chunk = examine(payload)
                if chunk.error is not None:
                    self._error = reported(chunk.error, self._api_key)
                    break
                if chunk.finished:
                    self._finished.update(chunk.finished)
                chunks.append(chunk)
        except (BadChunk, LineTooLong) as error:
            self._error = UpstreamError("bad_upstream_response", f"The upstream sent a bad chunk: {error}.")
        return chunks

    def _ended(self) -> None:
        """Without [DONE]: complete only if each choice asked for has its finish_reason."""
        if len(self._finished) >= self._choices:
            self.done = True
        else:
            self._error = UpstreamError("upstream_truncated", "The upstream's stream ended before the completion did.")


class Silence:
    """Cancels the block when the upstream says nothing for too long. Chunks count, not bytes, so keep-alive
    comments do not; nor does the time in which nobody listens. One timer, moved only when it fires: an
    `asyncio.timeout` moved per chunk costs more than the chunk."""

    def __init__(self, first: float, idle: float) -> None:
        self._first, self._idle = first, idle
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time() + first
        self._scope = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None
        self._heard = False

    async def __aenter__(self) -> None:
        await self._scope.__aenter__()
        self._timer = self._loop.call_at(self._due, self._check)

    async def __aexit__(self, *raised: Any) -> bool | None:
        if self._timer is not None:
            self._timer.cancel()
        return await self._scope.__aexit__(*raised)

    @property
    def expired(self) -> bool:
        return self._scope.expired()

    @property
    def complaint(self) -> str:
        if self._heard:
            return f"The upstream sent nothing for {self._idle:g} s."
        return f"The upstream sent no chunk within {self._first:g} s."

    def listen(self) -> None:
        if self._heard:
            self._due = self._loop.time() + self._idle

    def heard(self) -> None:
        self._due = float("inf")
        if not self._heard and self._timer is not None:
            self._heard = True
            self._timer.cancel()  # `first` may be longer than `idle`
            self._timer = self._loop.call_later(self._idle, self._check)

    def _check(self) -> None:
        now = self._loop.time()
        if self._due <= now:
            self._scope.reschedule(now)
            return
        self._timer = self._loop.call_at(min(self._due, now + self._idle), self._check)


def _with_usage(body: Json) -> Json:
    return {**body, "stream_options": {**(body.get("stream_options") or {}), "include_usage": True}}


def _without_usage(body: Json, *, whole: bool = False) -> Json:
    options = cast(Json, body.get("stream_options") or {})
    rest = {} if whole else {key: value for key, value in options.items() if key != "include_usage"}
    without = {key: value for key, value in body.items() if key != "stream_options"}
    return {**without, "stream_options": rest} if rest else without


def _names_usage(error: UpstreamError) -> bool:
    said = f"{error.message} {error.param}"
    return "stream_options" in said or "include_usage" in said


def _classified(error: BaseException, api_key: str | None) -> UpstreamError:
    """What went wrong before the stream began."""
    if isinstance(error, openai.APIStatusError):
        return answered(error.status_code, error.response.headers, error.body, api_key)
    if failure := connection_failure(error):
        return failure
    return _broken_off(error, begun=False)


def _broken_off(error: BaseException, *, begun: bool) -> UpstreamError:
    if isinstance(error, httpx2.DecodingError | httpx2.InvalidURL | UnicodeError) or (
        isinstance(error, ValueError) and not isinstance(error, OSError)
    ):
        return UpstreamError("bad_upstream_response", "The upstream's response cannot be read.")
    return broken(begun=begun)


async def _drain(stream: UpstreamStream) -> None:
    with suppress(*FAMILIES):
        async with asyncio.timeout(AFTERMATH):
            async for _ in stream.reads:
                pass
    await _shut(stream.response)


async def _shut(response: openai.AsyncAPIResponse[Any]) -> None:
    with suppress(*FAMILIES):
        await response.close()
