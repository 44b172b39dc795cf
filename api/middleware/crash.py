"""The handler of last resort: an unexpected exception is a bug, and is answered with a 500.

It is inside the middleware that adds the request id and the CORS headers, unlike Starlette's own handler, which is
outermost: without them nobody could report the bug, and a page could not read the status.
"""

from __future__ import annotations

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import NO_RETRY, error_response
from broker.runtime.logging import REQUEST_ID

ACCEPTED = "tokencast.accepted"
"""Scope key of a request that may have created a generation: the generation's id, or "" while it is unknown."""

logger = logging.getLogger("tokencast.api")


class LastResort:
    """The middleware. If the response has begun, it can only be cut off, which the server does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def note_start(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, note_start)
        except Exception as error:
            if started or scope["type"] != "http":
                raise
            logger.exception("unhandled %s (%s)", type(error).__name__, REQUEST_ID.get())
            await error_response(500, "Internal server error.", "internal_error", None, _headers(scope))(
                scope, receive, send
            )


def _headers(scope: Scope) -> dict[str, str]:
    """Return headers that prevent a retry: another POST would be another generation, and another bill."""
    gid: str | None = scope.get(ACCEPTED)
    if gid is None:
        return {}
    return {**NO_RETRY, "x-generation-id": gid} if gid else dict(NO_RETRY)
