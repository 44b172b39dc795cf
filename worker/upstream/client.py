"""The HTTP client of one upstream: the openai SDK over aiohttp, and what it must not do on its own.

It keeps no cookies, follows no redirect, uses no proxy, takes headers of 64 KiB, and trusts the certificates of
SSL_CERT_FILE and SSL_CERT_DIR. Each limit here is of what an upstream may send before its stream begins.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Annotated, cast

import aiohttp
import httpx2
import msgspec
import openai
from aiohttp.http_exceptions import LineTooLong
from openai._vendor.httpx_aiohttp import AiohttpTransport

from broker.errors import Misconfigured
from broker.runtime.environment import read_variable
from broker.runtime.http_tls import causes, ssl_context, tls_failure
from broker.settings.settings import Upstream
from broker.settings.upstreams import check_key
from worker.upstream.errors import UpstreamError

# At the open the SDK raises its own types. In mid-stream, and while it reads an error's body, the transport's come
# through: httpx2's, and through the aiohttp transport unmapped aiohttp ones too. ValueError: what SDK and
# transport make of a body that is not what its headers say.
FAMILIES = (openai.OpenAIError, httpx2.HTTPError, httpx2.InvalidURL, aiohttp.ClientError, OSError, ValueError)
ERROR_BODY = 64 * 1024  # bytes of an error's body that are read; the SDK would take all of it
ERROR_WITHIN = 3.0  # seconds
HEADER = 64 * 1024  # bytes of a response's header, and of its status line; aiohttp would take 8 KiB
MODEL_LIST = 4 * 1024 * 1024  # bytes
MODEL_LIST_WITHIN = 30.0  # seconds
_LONGEST_MODEL = 256
_OF_THE_SDK = ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID")  # which it sends as headers


def check_client(upstreams: Iterable[Upstream]) -> None:
    """Misconfigured names a variable with which no request could be made."""
    if any(upstream.base_url.lower().startswith("https:") for upstream in upstreams):
        ssl_context()
    custom = read_variable("OPENAI_CUSTOM_HEADERS") or ""  # one a line; the SDK sends them
    if not all(line.isascii() and line.strip().isprintable() for line in custom.split("\n")):
        raise Misconfigured("OPENAI_CUSTOM_HEADERS: holds a character that no header can have")
    for name in _OF_THE_SDK:
        if value := read_variable(name):
            try:
                check_key(value)
            except ValueError as error:
                raise Misconfigured(f"{name}: {error}") from None


def new_client(upstream: Upstream, slots: int) -> openai.AsyncOpenAI:
    """To be closed. Misconfigured if the certificates that it is to trust cannot be read."""
    connections = slots + max(1, slots // 10)
    # aiohttp has no write timeout (30 s where a transport has one): the first-token timer covers the sending too.
    timeout = httpx2.Timeout(connect=5.0, read=None, write=30.0, pool=10.0)
    headers = dict(upstream.headers)
    without_key = upstream.api_key is None and "authorization" not in map(str.lower, headers)
    http_client = openai.DefaultAioHttpClient(
        transport=_transport(upstream, connections),
        timeout=timeout,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        follow_redirects=False,
        trust_env=False,
        event_hooks={"request": [_drop_key] if without_key else [], "response": [_bound_error]},
    )
    return openai.AsyncOpenAI(
        api_key=upstream.api_key or "none",  # the SDK wants one
        base_url=upstream.base_url,
        max_retries=0,
        timeout=timeout,
        http_client=http_client,
        default_headers={"Accept-Encoding": "identity", "Accept": "text/event-stream", **headers},
    )


def _transport(upstream: Upstream, connections: int) -> httpx2.AsyncBaseTransport:
    secure = upstream.base_url.lower().startswith("https:")
    context = ssl_context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return AiohttpTransport(verify=context, client=_session(connections, context))


def _session(connections: int, context: ssl.SSLContext) -> Callable[[], aiohttp.ClientSession]:
    """Called for the first request, since a session belongs to a running loop."""

    def begin() -> aiohttp.ClientSession:
        # Idle connections go before a server's usual 5 s do: a request on a closing one fails.
        connector = aiohttp.TCPConnector(limit=connections, keepalive_timeout=4.0, ssl=context)
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            max_line_size=HEADER,
            max_field_size=HEADER,
        )

    return begin


async def _drop_key(request: httpx2.Request) -> None:
    request.headers.pop("authorization", None)


async def _bound_error(response: httpx2.Response) -> None:
    if response.status_code >= 300:
        response.stream = _Head(response.stream)


class _Head(httpx2.AsyncByteStream):
    """What comes of a response's body within ERROR_WITHIN, ERROR_BODY bytes at most, as if there were no more: the
    words of a refusal count although its connection breaks or stays open."""

    def __init__(self, stream: httpx2.SyncByteStream | httpx2.AsyncByteStream) -> None:
        self._stream = cast(httpx2.AsyncByteStream, stream)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left, parts = ERROR_BODY, aiter(self._stream)
        until = asyncio.get_running_loop().time() + ERROR_WITHIN
        while left > 0:
            try:
                async with asyncio.timeout_at(until):
                    part = await anext(parts)
            except (StopAsyncIteration, httpx2.HTTPError, aiohttp.ClientError, OSError):  # a time-out is an OSError
                return
            yield part[:left]
            left -= len(part)

    async def aclose(self) -> None:
        await self._stream.aclose()


def connection_failure(error: BaseException) -> UpstreamError | None:
    """For an error before the response's headers were read: no connection, an untrusted certificate, headers that
    cannot be read. None for any other."""
    if why := tls_failure(error, "the upstream"):
        return UpstreamError("upstream_unreachable", f"{why[0].upper()}{why[1:]}.")
    for cause in causes(error):
        if isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | httpx2.ConnectError):
            return UpstreamError("upstream_unreachable", "The upstream cannot be reached.", retryable=True)
        if isinstance(cause, aiohttp.ClientResponseError):
            # What an upstream sent behind its last response stands before the next one: another connection may do.
            return UpstreamError(
                "bad_upstream_response",
                "The upstream's response has headers that are too long or cannot be read.",
                retryable=not any(isinstance(each, LineTooLong) for each in causes(error)),
            )
    return None


class _Model(msgspec.Struct):
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=_LONGEST_MODEL)]


class _Models(msgspec.Struct):
    data: list[_Model]


async def read_models(client: openai.AsyncOpenAI) -> list[str]:
    """The names in `GET /models`. UpstreamError, whose message holds none of the upstream's words."""
    try:
        async with asyncio.timeout(MODEL_LIST_WITHIN):
            body = await _read_list(client)
        return [model.id for model in msgspec.json.decode(body, type=_Models).data]
    except openai.APIStatusError as error:
        raise UpstreamError("upstream_error", f"it answers {error.status_code}", status=error.status_code) from None
    except msgspec.DecodeError:
        raise UpstreamError("bad_upstream_response", "the answer is not a list of models") from None
    except TimeoutError:
        raise UpstreamError("upstream_timeout", f"there was no answer within {MODEL_LIST_WITHIN:g} s") from None
    except FAMILIES as error:
        failure = connection_failure(error)
        why = failure.message.rstrip(".") if failure else f"the answer broke off ({type(error).__name__})"
        raise UpstreamError("upstream_unreachable", why) from None


async def _read_list(client: openai.AsyncOpenAI) -> bytearray:
    body = bytearray()
    async with client.models.with_streaming_response.list(extra_headers={"Accept": "application/json"}) as response:
        async for part in response.iter_bytes():
            body += part
            if len(body) > MODEL_LIST:
                raise UpstreamError("bad_upstream_response", f"the list has more than {MODEL_LIST} bytes")
    return body
