"""Shared by the routes: the methods of a path, request bodies, and the submission of a generation."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from api.middleware.crash import ACCEPTED
from broker.broker import Broker
from broker.errors import BodyTooLarge, InvalidRequest
from broker.request.body import CompletionRequest
from broker.runtime.logging import REQUEST_ID
from broker.store.store import Created

logger = logging.getLogger("tokencast.api")

Handler = Callable[[Request], Awaitable[Response]]


def by_method(path: str, kind: type[Route] = Route, **handlers: Handler) -> Route:
    """Make one route per path, so that the answer to a wrong method lists all the right ones. The handler of GET
    also answers HEAD, and must not open a stream for it."""
    if "GET" in handlers:
        handlers["HEAD"] = handlers["GET"]

    return kind(path, _ByMethod(handlers), methods=list(handlers))


class FixedRoute(Route):
    """A route whose path another one with a parameter matches as well: wrong methods get a 405 here, and not the answer
    of that other route."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        return Match.NONE if match is Match.NONE else Match.FULL, child


class _ByMethod:
    """An ASGI application instead of a function, which Starlette would wrap in another exception handler: that took
    2 of 22 KiB per subscriber. The request is also released before the response is sent."""

    def __init__(self, handlers: dict[str, Handler]) -> None:
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._handlers[scope["method"]](Request(scope, receive, send))
        await response(scope, receive, send)


async def read_body(request: Request, most: int, too_large: str | None = None) -> bytes:
    """Read the body. BodyTooLarge, with the message `too_large`, as soon as it is known to be longer than `most` bytes;
    otherwise as `check_codings`."""
    check_codings(request)
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise BodyTooLarge(too_large)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            raise BodyTooLarge(too_large)
    return bytes(body)


def check_codings(request: Request) -> None:
    """415 for a compressed body, whose length says nothing about its decompressed size; 501 for a transfer encoding
    that is not supported (RFC 9112 §6.1)."""
    if encoding := _coding(request, "content-encoding", {"identity"}):
        message = f"`Content-Encoding: {encoding[:50]}` is not supported; send the body without it."
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message, {"accept-encoding": "identity"})
    if encoding := _coding(request, "transfer-encoding", {"identity", "chunked"}):
        message = f"`Transfer-Encoding: {encoding[:50]}` is not supported; send the body without it."
        raise HTTPException(HTTPStatus.NOT_IMPLEMENTED, message)


def _coding(request: Request, name: str, known: set[str]) -> str:
    """Return the codings that the headers of this name list if one of them is not known; else ""."""
    listed = ", ".join(request.headers.getlist(name))
    unknown = {coding.strip().lower() for coding in listed.split(",")} - known - {""}
    return listed if unknown else ""


async def read_request(request: Request, broker: Broker, tenant: str) -> CompletionRequest:
    """Read and validate a chat.completions body."""
    return await broker.parse(await read_body(request, broker.settings.max_body), tenant)


def idempotency_key_of(request: Request) -> str | None:
    """Return the request's Idempotency-Key. InvalidRequest if it has several."""
    given = set(request.headers.getlist("idempotency-key"))
    if len(given) > 1:
        raise InvalidRequest("`Idempotency-Key` is given more than once.", param="idempotency-key")
    return next(iter(given), None) or None


async def submit(
    broker: Broker, request: Request, asked: CompletionRequest, tenant: str, queue_timeout: float
) -> Created:
    """Submit a checked body, under the request's Idempotency-Key if it has one. `queue_timeout`: seconds for which it
    may wait if the body does not say."""
    key = idempotency_key_of(request)
    request.scope[ACCEPTED] = ""
    created = await broker.submit(asked, tenant, key, request.is_disconnected, queue_timeout=queue_timeout)
    request.scope[ACCEPTED] = created.id
    logger.info("%s: %s (%s)", created.id, "requested again" if created.replayed else "accepted", REQUEST_ID.get())
    return created
