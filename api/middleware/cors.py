"""CORS: pages of the origins in TOKENCAST_CORS_ORIGINS may use the gateway (Fetch, CORS protocol)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from api.errors import error_response

EXPOSED = (
    "idempotent-replayed",
    "location",
    "retry-after",
    "x-generation-id",
    "x-request-id",
    "x-should-retry",  # without it an SDK in a page repeats an accepted request, which is paid twice
)
"""Headers that a page may read, besides those that every page may read (Cache-Control, Content-Type …)."""

_NAMES = re.compile(r"[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+[ \t]*(,[ \t]*|$))*", re.ASCII)


class Cors(CORSMiddleware):
    """The middleware. A page of a listed origin may send any header: SDKs and tracing libraries add their own, and none
    of ours grants more than its value says. Credentials (cookies) are not allowed."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST", "PATCH", "DELETE"),
            allow_headers=("*",),
            expose_headers=EXPOSED,
            allow_private_network=True,  # a listed public page may use a gateway on its user's machine
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        names = request_headers.get("access-control-request-headers", "")
        if not _NAMES.fullmatch(names):
            param = "access-control-request-headers"
            return error_response(
                400, "`Access-Control-Request-Headers` must be a list of header names.", "invalid_value", param
            )
        return super().preflight_response(request_headers)
