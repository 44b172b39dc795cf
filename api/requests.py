"""What the routes share: methods of a path, bodies, numbers, and accepting a generation."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from api.middleware.crash import ACCEPTED
from broker.broker import Broker
from broker.errors import BodyTooLarge, InvalidRequest
from broker.request import CompletionRequest
from broker.runtime.logging import REQUEST_ID
from broker.store.store import Created

logger = logging.getLogger("tokencast.api")

Handler = Callable[[Request], Awaitable[Response]]


def by_method(path: str, **handlers: Handler) -> Route:
    """One route a path, so that a wrong method is told all the right ones. GET answers HEAD too."""
    if "GET" in handlers:
        handlers["HEAD"] = handlers["GET"]

    return Route(path, _ByMethod(handlers), methods=list(handlers))


class _ByMethod:
    """An application of its own, not a function, around which Starlette would put another guard: of the 22 KiB that a
    subscriber took those were 2. Nor is the request kept for as long as the response lasts."""

    def __init__(self, handlers: dict[str, Handler]) -> None:
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._handlers[scope["method"]](Request(scope, receive, send))
        await response(scope, receive, send)


async def read_body(request: Request, most: int) -> bytes:
    """Read the body. BodyTooLarge as soon as it is known to be longer than `most` bytes; 415 for one that is
    compressed: its length would say nothing of what it becomes; 501 for one that is compressed on its way (RFC 9112
    §6.1)."""
    if encoding := _coding(request, "content-encoding", {"identity"}):
        message = f"`Content-Encoding: {encoding[:50]}` is not supported; send the body as it is."
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message, {"accept-encoding": "identity"})
    if encoding := _coding(request, "transfer-encoding", {"identity", "chunked"}):
        message = f"`Transfer-Encoding: {encoding[:50]}` is not supported; send the body as it is."
        raise HTTPException(HTTPStatus.NOT_IMPLEMENTED, message)
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise BodyTooLarge
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            raise BodyTooLarge
    return bytes(body)


def _coding(request: Request, name: str, known: set[str]) -> str:
    """All that the headers of this name list, where some of it is not known; else ""."""
    listed = ", ".join(request.headers.getlist(name))
    unknown = {coding.strip().lower() for coding in listed.split(",")} - known - {""}
    return listed if unknown else ""


async def read_request(request: Request, broker: Broker) -> CompletionRequest:
    """Read and validate a chat.completions body."""
    return await broker.parse(await read_body(request, broker.settings.max_body))


async def submit(broker: Broker, request: Request, asked: CompletionRequest, tenant: str) -> Created:
    """Accepts a checked body, under its Idempotency-Key if it has one."""
    given = set(request.headers.getlist("idempotency-key"))
    if len(given) > 1:
        raise InvalidRequest("There are several `Idempotency-Key` headers.", param="idempotency-key")
    request.scope[ACCEPTED] = ""
    created = await broker.submit(asked, tenant, next(iter(given), None), request.is_disconnected)
    request.scope[ACCEPTED] = created.id
    logger.info("%s: %s (%s)", created.id, "asked for again" if created.replayed else "accepted", REQUEST_ID.get())
    return created
