"""Calls the upstream and yields its stream as validated chunks, through the openai SDK.

The SDK sends the request, and the raw bytes of its response are split here: the SDK's chunk objects cost 113 µs each
and fail on input that some upstreams send; bytes over its aiohttp transport cost 2 µs (11 over httpx2).
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import httpx2
import openai
from aiohttp.http_exceptions import ContentLengthError, HttpProcessingError, TransferEncodingError

from broker.errors import ModelNotFound
from broker.runtime.http_tls import causes
from broker.settings.settings import Settings
from broker.settings.upstreams import Upstream
from worker.upstream.chunks import Chunk
from worker.upstream.client import MODEL_LIST_TIMEOUT, TRANSPORT_ERRORS, connection_failure, new_client, read_models
from worker.upstream.errors import UpstreamError, from_broken_connection, from_response
from worker.upstream.rate_limits import read_rate_limits
from worker.upstream.reply import Reply, wrong_type
from worker.upstream.watchdog import Watchdog

Json = dict[str, Any]

HTML_TYPES = frozenset({"text/html", "application/xhtml+xml"})
USAGE_WAIT = 3.0  # seconds to wait for the usage once every choice has its finish reason
END_WAIT = 0.5  # seconds to wait for the end of the response once the usage has arrived too
DRAIN_TIMEOUT = 0.1  # seconds in which a response must end after [DONE], so that its connection can be reused


class Upstreams:
    """The clients of all upstreams of this process. An async context manager that closes them on exit."""

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
    async def open(self, model: str, body: Json, resource: str | None = None) -> AsyncGenerator[UpstreamStream]:
        """Call an upstream that serves `model` and yield its response stream, which is closed on exit. `resource`: name
        of the resource that the call uses; default: the first upstream. The call and the iteration raise
        UpstreamError."""
        upstream = self._upstream(model, resource)
        watchdog = Watchdog(
            upstream.first_token_timeout or self._settings.first_token_timeout,
            upstream.idle_timeout or self._settings.idle_timeout,
        )
        answered = False
        try:
            async with watchdog:
                response = await self._respond(upstream, {**body, "model": upstream.sent_model(model)})
                answered = True
                content_type = _content_type(response)
                reply = Reply(int(body.get("n") or 1), upstream.secrets, self._settings.max_output, content_type)
                stream = UpstreamStream(response, watchdog, reply)
                try:
                    yield stream
                finally:
                    await self._close(stream)
        except TimeoutError:
            if not watchdog.expired:
                raise
            # Without response headers the upstream has not accepted the call, and may be down.
            raise UpstreamError("upstream_timeout", watchdog.message, retryable=not answered) from None

    def with_patterns(self) -> list[Upstream]:
        """Return the usable upstreams that have models configured by pattern."""
        return [
            upstream for upstream in self._upstreams if upstream.usable and len(upstream.named) < len(upstream.models)
        ]

    def with_names(self) -> list[Upstream]:
        """Return the other usable upstreams, whose models are all configured by name."""
        return [upstream for upstream in self._upstreams if upstream.usable and upstream not in self.with_patterns()]

    async def models(self, upstream: Upstream, timeout: float = MODEL_LIST_TIMEOUT) -> list[str]:
        """Return the model names that the upstream lists. Raises UpstreamError with a message in our own words."""
        return await read_models(self._clients[upstream.name], timeout)

    def _upstream(self, model: str, resource: str | None) -> Upstream:
        serving = [upstream for upstream in self._upstreams if upstream.serves(model)]
        for upstream in serving:
            if upstream.usable and resource in (None, upstream.resource_of(model)):
                return upstream
        for upstream in serving:
            if not upstream.usable:
                raise UpstreamError("upstream_auth", f"{' and '.join(upstream.missing)} is not set on the worker.")
        raise UpstreamError(
            ModelNotFound.code, "No upstream of this worker serves this model.", status=404, param="model"
        )

    async def _respond(self, upstream: Upstream, body: Json) -> openai.AsyncAPIResponse[Any]:
        """Send the request and return the response once its headers arrived. If the server rejects the usage option,
        which not every server knows, the request is repeated without it."""
        sent = _with_usage(body) if upstream.usage else _without_usage(body)
        try:
            return await self._request(upstream, sent)
        except openai.APIStatusError as error:
            if "stream_options" not in sent or not _rejects_usage(error):
                raise _map_error(error, upstream.secrets) from error
        try:
            return await self._request(upstream, _without_usage(body, whole=True))
        except openai.APIStatusError as error:
            raise _map_error(error, upstream.secrets) from error

    async def _request(self, upstream: Upstream, body: Json) -> openai.AsyncAPIResponse[Any]:
        """Raises UpstreamError, or openai.APIStatusError for a status other than 200."""
        completions = self._clients[upstream.name].chat.completions
        try:
            # extra_body is merged over the rest, so parameters that the SDK does not know are sent too.
            request = completions.with_streaming_response.create(
                model=body["model"], messages=[], stream=True, extra_body={**body, "stream": True}
            )
            response = await request.__aenter__()
        except openai.APIStatusError:
            raise
        except TRANSPORT_ERRORS as error:
            raise _map_error(error, upstream.secrets) from error
        if _content_type(response) in HTML_TYPES:
            await _close_response(response)
            raise wrong_type(_content_type(response))
        return response

    async def _close(self, stream: UpstreamStream) -> None:
        """Close the response at once, or after a short drain if the stream reached its end, to reuse its connection."""
        if stream.abandoned or not stream.reply.done:
            await _close_response(stream.response)
            return
        task = asyncio.create_task(_drain(stream))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


class UpstreamStream:
    """Asynchronous iterator over lists of chunks, one list per read. Raises UpstreamError."""

    def __init__(self, response: openai.AsyncAPIResponse[Any], watchdog: Watchdog, reply: Reply) -> None:
        self.response = response
        self.reads = response.iter_bytes()
        self.reply = reply
        self.rate_limits = read_rate_limits(response.headers)
        """The upstream's rate limits, if the response tells them."""
        self.abandoned = False
        """Whether a read was cancelled; nothing more can be read after that."""
        self._watchdog = watchdog
        self._read_deadline = float("inf")

    def __aiter__(self) -> UpstreamStream:
        return self

    @property
    def finished(self) -> bool:
        """Whether each choice has its finish reason, so that only the connection is still open."""
        return self.reply.finished

    async def __anext__(self) -> list[Chunk]:
        reply = self.reply
        if not reply.finished:
            self._watchdog.resume()
        while reply.error is None and not reply.done:
            chunks = await self._next_chunks()
            if chunks:
                self._watchdog.chunk_received()
                if reply.finished:
                    self._limit_wait(chunks)
                return chunks
        if reply.error is None:
            raise StopAsyncIteration
        try:
            raise reply.error
        finally:
            reply.error, reply.done = None, True  # the error refers to this frame: a reference cycle

    async def _next_chunks(self) -> list[Chunk]:
        """Return the chunks that the next read, or the end of the response, completes."""
        try:
            return self.reply.feed(await self._read())
        except StopAsyncIteration:
            return self.reply.end()
        except TRANSPORT_ERRORS as error:
            return self.reply.end_broken(_map_broken_connection(error, started=self.reply.started))

    async def _read(self) -> bytes:
        if not self.reply.finished:
            return await anext(self.reads)
        wait = asyncio.timeout_at(self._read_deadline)
        try:
            async with wait:
                return await anext(self.reads)
        except TimeoutError:
            if not wait.expired():
                raise
            self.abandoned = True
            self.reply.stop_waiting()
            return b""

    def _limit_wait(self, chunks: list[Chunk]) -> None:
        """Set the deadline of the reads after the finish reason: usage may follow, and also text if an upstream repeats
        the finish reason in each chunk."""
        now = asyncio.get_running_loop().time()
        if self._read_deadline == float("inf") or any(chunk.tokens for chunk in chunks):
            self._read_deadline = now + USAGE_WAIT
        if self.reply.has_usage:  # usually the last chunk of a stream
            self._read_deadline = min(self._read_deadline, now + END_WAIT)


def _with_usage(body: Json) -> Json:
    return {**body, "stream_options": {**(body.get("stream_options") or {}), "include_usage": True}}


def _without_usage(body: Json, *, whole: bool = False) -> Json:
    options = cast(Json, body.get("stream_options") or {})
    rest = {} if whole else {key: value for key, value in options.items() if key != "include_usage"}
    without = {key: value for key, value in body.items() if key != "stream_options"}
    return {**without, "stream_options": rest} if rest else without


def _rejects_usage(error: openai.APIStatusError) -> bool:
    """Return whether an upstream's error message names the usage option, in any wording."""
    text = f"{error.message} {_body_of(error)!r}"
    return error.status_code not in (401, 429) and _USAGE_OPTION.search(text) is not None


def _body_of(error: openai.APIStatusError) -> object:
    """Return the complete body of the response: the SDK provides only its `error` field."""
    try:
        return json.loads(error.response.content)
    except (ValueError, RecursionError, httpx2.HTTPError):
        return error.body


_USAGE_OPTION = re.compile(r"stream[_ ]?options|include_usage", re.IGNORECASE)


def _content_type(response: openai.AsyncAPIResponse[Any]) -> str:
    return response.headers.get("content-type", "").partition(";")[0].strip().lower()


def _map_error(error: BaseException, secrets: Sequence[str]) -> UpstreamError:
    """Map an error before the stream began."""
    if isinstance(error, openai.APIStatusError):
        return from_response(error.status_code, error.response.headers, _body_of(error), secrets)
    if failure := connection_failure(error):
        return failure
    return _map_broken_connection(error, started=False)


def _map_broken_connection(error: BaseException, *, started: bool) -> UpstreamError:
    if any(isinstance(cause, _UNREADABLE) and not isinstance(cause, _TRUNCATED) for cause in causes(error)) or (
        isinstance(error, ValueError) and not isinstance(error, OSError)
    ):
        return UpstreamError("bad_upstream_response", "The upstream's response cannot be decoded.")
    return from_broken_connection(started=started)


_UNREADABLE = (httpx2.DecodingError, httpx2.InvalidURL, UnicodeError, HttpProcessingError)
_TRUNCATED = (TransferEncodingError, ContentLengthError)


async def _drain(stream: UpstreamStream) -> None:
    with suppress(*TRANSPORT_ERRORS):
        async with asyncio.timeout(DRAIN_TIMEOUT):
            async for _ in stream.reads:
                pass
    await _close_response(stream.response)


async def _close_response(response: openai.AsyncAPIResponse[Any]) -> None:
    with suppress(*TRANSPORT_ERRORS):
        await response.close()
