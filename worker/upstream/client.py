"""The HTTP client of one upstream: the openai SDK over aiohttp.

The client keeps no cookies, follows no redirects, uses no proxy, accepts headers of up to 64 KiB, and trusts the
certificates in SSL_CERT_FILE and SSL_CERT_DIR. The limits apply to what an upstream sends before its stream begins.
"""

from __future__ import annotations

import asyncio
import errno
import socket
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
from broker.settings.upstream_entries import check_key
from broker.settings.upstreams import Upstream
from worker.upstream.errors import Cause, UpstreamError

# When a request is opened, the SDK raises its own types. In mid-stream, and while it reads an error's body, exceptions
# of the transport pass through: those of httpx2 and, unmapped, those of aiohttp. ValueError: raised by the SDK and the
# transport for a body that contradicts its headers.
TRANSPORT_ERRORS = (openai.OpenAIError, httpx2.HTTPError, httpx2.InvalidURL, aiohttp.ClientError, OSError, ValueError)
ERROR_BODY_LIMIT = 64 * 1024  # maximum bytes read of an error's body; the SDK would read all of it
ERROR_BODY_TIMEOUT = 3.0  # seconds
HEADER_LIMIT = 64 * 1024  # maximum bytes of a response header, and of the status line; aiohttp's default is 8 KiB
MODEL_LIST_LIMIT = 4 * 1024 * 1024  # bytes
MODEL_LIST_TIMEOUT = 30.0  # seconds
CONNECT_TIMEOUT = 5.0  # seconds
_MAX_MODEL_NAME = 256
_SDK_HEADER_VARIABLES = ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID")  # variables that the SDK sends as headers


def check_client(upstreams: Iterable[Upstream]) -> None:
    """Raise Misconfigured, which names the variable, if an environment variable makes every request impossible."""
    if any(upstream.base_url.lower().startswith("https:") for upstream in upstreams):
        ssl_context()
    custom = read_variable("OPENAI_CUSTOM_HEADERS") or ""  # one header per line, sent by the SDK
    if not all(line.isascii() and line.strip().isprintable() for line in custom.split("\n")):
        raise Misconfigured("OPENAI_CUSTOM_HEADERS: contains a character that is not allowed in a header")
    for name in _SDK_HEADER_VARIABLES:
        if value := read_variable(name):
            try:
                check_key(value)
            except ValueError as error:
                raise Misconfigured(f"{name}: {error}") from None


def new_client(upstream: Upstream, slots: int) -> openai.AsyncOpenAI:
    """Return a client that the caller must close. Raises Misconfigured if the trusted certificates cannot be read."""
    connections = slots + max(1, slots // 10)
    # aiohttp has no write timeout (30 s is for transports that have one): the first-token timer also covers sending.
    timeout = httpx2.Timeout(connect=CONNECT_TIMEOUT, read=None, write=30.0, pool=10.0)
    headers = dict(upstream.headers)
    without_key = upstream.api_key is None and "authorization" not in map(str.lower, headers)
    http_client = openai.DefaultAioHttpClient(
        transport=_transport(upstream, connections),
        timeout=timeout,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        follow_redirects=False,
        trust_env=False,
        event_hooks={"request": [_drop_key] if without_key else [], "response": [_limit_error_body]},
    )
    return openai.AsyncOpenAI(
        api_key=upstream.api_key or "none",  # the SDK requires a value
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
    """Return the session's factory. The transport calls it at the first request: a session needs a running loop."""

    def create() -> aiohttp.ClientSession:
        # Close idle connections before servers do, usually after 5 s: a request on a closing connection fails.
        connector = aiohttp.TCPConnector(limit=connections, keepalive_timeout=4.0, ssl=context)
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            max_line_size=HEADER_LIMIT,
            max_field_size=HEADER_LIMIT,
        )

    return create


async def _drop_key(request: httpx2.Request) -> None:
    request.headers.pop("authorization", None)


async def _limit_error_body(response: httpx2.Response) -> None:
    if response.status_code >= 300:
        response.stream = _LimitedBody(response.stream)


class _LimitedBody(httpx2.AsyncByteStream):
    """A response body that ends after ERROR_BODY_LIMIT bytes or ERROR_BODY_TIMEOUT seconds. The message of an error
    response is used even if its connection breaks or stays open."""

    def __init__(self, stream: httpx2.SyncByteStream | httpx2.AsyncByteStream) -> None:
        self._stream = cast(httpx2.AsyncByteStream, stream)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        remaining, parts = ERROR_BODY_LIMIT, aiter(self._stream)
        deadline = asyncio.get_running_loop().time() + ERROR_BODY_TIMEOUT
        while remaining > 0:
            try:
                async with asyncio.timeout_at(deadline):
                    part = await anext(parts)
            except (StopAsyncIteration, httpx2.HTTPError, aiohttp.ClientError, OSError):  # a timeout is an OSError
                return
            yield part[:remaining]
            remaining -= len(part)

    async def aclose(self) -> None:
        await self._stream.aclose()


def connection_failure(error: BaseException) -> UpstreamError | None:
    """Map an error before the response's headers were read: no connection, an untrusted certificate, unreadable
    headers. None for any other error."""
    if why := tls_failure(error, "the upstream"):
        return UpstreamError("upstream_unreachable", f"{why[0].upper()}{why[1:]}.", cause="tls")
    for cause in causes(error):
        if isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | httpx2.ConnectError):
            return UpstreamError(
                "upstream_unreachable", "The upstream cannot be reached.", retryable=True, cause=_cause_of(error)
            )
        if isinstance(cause, aiohttp.ClientResponseError):
            # Surplus bytes after the previous response precede this one: another connection may work.
            return UpstreamError(
                "bad_upstream_response",
                "The upstream's response headers are too long or malformed.",
                retryable=not any(isinstance(each, LineTooLong) for each in causes(error)),
            )
    return None


def _cause_of(error: BaseException) -> Cause:
    """Return the class of an error that prevented a connection. The transport's own mapping does not help: it turns
    a refused connection into a timeout."""
    for cause in causes(error):
        if isinstance(cause, aiohttp.ClientConnectorDNSError | socket.gaierror):
            return "dns"
        if isinstance(cause, aiohttp.ConnectionTimeoutError):
            return "timeout"
        if isinstance(cause, OSError) and cause.errno in _CAUSES:
            return _CAUSES[cause.errno]
    return "unreachable"


_CAUSES: dict[int | None, Cause] = {
    errno.ECONNREFUSED: "refused",
    errno.ETIMEDOUT: "timeout",
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
}


class _Model(msgspec.Struct):
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=_MAX_MODEL_NAME)]


class _Models(msgspec.Struct):
    data: list[_Model]


async def read_models(client: openai.AsyncOpenAI, timeout: float = MODEL_LIST_TIMEOUT) -> list[str]:
    """Return the model names in `GET /models`. Raises UpstreamError; its message quotes nothing from the upstream."""
    try:
        async with asyncio.timeout(timeout):
            body = await _read_list(client)
        return [model.id for model in msgspec.json.decode(body, type=_Models).data]
    except openai.APIStatusError as error:
        status = error.status_code
        refusal = _REFUSALS.get(status)
        message = f"{refusal}, status {status}" if refusal else f"status {status}"
        raise UpstreamError("upstream_error", message, status=status) from None
    except msgspec.DecodeError:
        raise UpstreamError("bad_upstream_response", "the response is not a list of models") from None
    except TimeoutError:
        raise UpstreamError("upstream_timeout", f"no response within {timeout:g} s") from None
    except TRANSPORT_ERRORS as error:
        failure = connection_failure(error)
        why = _describe(failure) if failure else f"the response was interrupted ({type(error).__name__})"
        raise UpstreamError("upstream_unreachable", why) from None


_REFUSALS = {401: "it refuses the key", 403: "it denies access"}
_CONNECTION_ERRORS: dict[Cause | None, str] = {
    "dns": "its host name cannot be resolved",
    "refused": "it refuses connections",
    "timeout": f"no connection within {CONNECT_TIMEOUT:g} s",
    "reset": "it closes connections at once",
    "unreachable": "no connection can be made",
}


def _describe(failure: UpstreamError) -> str:
    """Return what an operator is told about a connection error."""
    return _CONNECTION_ERRORS.get(failure.cause) or failure.message.rstrip(".")


async def _read_list(client: openai.AsyncOpenAI) -> bytearray:
    body = bytearray()
    async with client.models.with_streaming_response.list(extra_headers={"Accept": "application/json"}) as response:
        async for part in response.iter_bytes():
            body += part
            if len(body) > MODEL_LIST_LIMIT:
                raise UpstreamError("bad_upstream_response", f"the list is larger than {MODEL_LIST_LIMIT} bytes")
    return body
