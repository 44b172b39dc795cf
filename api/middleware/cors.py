"""Which other origins' pages may use the gateway: those in TOKENCAST_CORS_ORIGINS (Fetch, CORS protocol)."""

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
    "x-should-retry",  # without it an SDK in a page repeats what was accepted, and pays for it again
)
"""Headers that a page may read, besides those that every page may (Cache-Control, Content-Type …)."""

_NAMES = re.compile(r"[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+[ \t]*(,[ \t]*|$))*", re.ASCII)


class Cors(CORSMiddleware):
    """The middleware. A page of a listed origin may send any header: SDKs and tracing libraries add their own, and
    none of ours means more than what it says. Credentials (cookies) are not allowed."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=EXPOSED,
            allow_private_network=True,  # a public page that is listed may use a gateway on its user's machine
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        names = request_headers.get("access-control-request-headers", "")
        if not _NAMES.fullmatch(names):
            param = "access-control-request-headers"
            return error_response(
                400, "`Access-Control-Request-Headers` lists names of headers.", "invalid_value", param
            )
        return super().preflight_response(request_headers)
