"""Responses when the connection limit is reached.

An error status would end an EventSource for good, so an event stream is told to reconnect. Other requests are refused;
probes are answered as usual.
"""

from __future__ import annotations

from collections.abc import Awaitable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from api.accept import names_event_stream, prefers_json
from api.errors import IS_FULL, full_error
from api.server.scope import FULL
from api.streaming.reconnect import LIMIT
from api.streaming.response import RetryLater

PROBES = frozenset({"/healthz", "/readyz", "/metrics"})


class Admission:
    """The middleware. It is inside those that add the request id and the CORS headers: without these a browser could
    not even read `retry:`. The server closes the connection after the response."""

    def __init__(self, app: ASGIApp, strict: tuple[str, ...]) -> None:
        self._app = app
        self._strict = strict

    # Not a coroutine itself: that would be one more stack frame per subscriber.
    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        full = FULL in (scope.get("extensions") or {})
        answer = refusal(Request(scope), self._strict) if full and scope["path"] not in PROBES else self._app
        return answer(scope, receive, send)


def refusal(request: Request, strict: tuple[str, ...]) -> Response:
    """Return the response; `strict` are the prefixes of paths that always get an error status."""
    return RetryLater(LIMIT, IS_FULL) if _is_event_source(request, strict) else full_error()


def _is_event_source(request: Request, strict: tuple[str, ...]) -> bool:
    """Return whether an EventSource may have sent the request. Clients of `strict` paths do not: they take a clean end
    for success."""
    path, headers = request.url.path, request.headers
    if request.method != "GET" or path.startswith(strict) or prefers_json(headers):
        return False
    return names_event_stream(headers) or path.endswith("/events")
