"""What a gateway answers that has as many connections as it can hold, on those that are one too many.

An error status would end an EventSource for good, so a browser's stream is told to come back; whoever else asks is
refused, and a probe is answered as ever.
"""

from __future__ import annotations

from collections.abc import Awaitable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from api.accept import names_event_stream, prefers_json
from api.errors import IS_FULL, full_error
from api.server.scope import FULL
from api.streaming.response import Later

PROBES = frozenset({"/healthz", "/readyz", "/metrics"})


class Admission:
    """Inside the middleware that gives an answer its id and its CORS headers: without those a browser could not
    even read `retry:`. The server closes the connection behind the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    # Not a coroutine itself: that would be one more on the stack of each subscriber.
    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        full = FULL in (scope.get("extensions") or {})
        answer = refusal(Request(scope)) if full and scope["path"] not in PROBES else self._app
        return answer(scope, receive, send)


def refusal(request: Request) -> Response:
    return Later("limit", IS_FULL) if _is_event_source(request) else full_error()


def _is_event_source(request: Request) -> bool:
    """What an EventSource could be behind; not an OpenAI client's stream, which takes a clean end for success."""
    path, headers = request.url.path, request.headers
    if request.method != "GET" or path.startswith("/v1/chat/") or prefers_json(headers):
        return False
    return names_event_stream(headers) or path.endswith("/events")
