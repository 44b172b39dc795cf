"""Error responses in OpenAI's shape, `{"error": {"message", "type", "param", "code"}}`.

The one place that maps errors to HTTP statuses.
"""

from __future__ import annotations

import logging
import random
import re
import secrets
from http import HTTPStatus
from typing import Any

import msgspec
from msgspec import UNSET
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from broker import errors, records
from broker.generation import Generation

logger = logging.getLogger("tokencast.api")

_STATUS: dict[type[errors.BrokerError], int] = {
    errors.InvalidRequest: 400,
    errors.InvalidCursor: 400,
    errors.InvalidKey: 401,
    errors.InvalidToken: 401,
    errors.ReadOnlyKey: 403,
    errors.OperatorRequired: 403,
    errors.ModelNotFound: 404,
    errors.UpstreamNotFound: 404,
    errors.WorkerNotFound: 404,
    errors.GenerationNotFound: 404,
    errors.DeliveryNotFound: 404,
    errors.GroupNotFound: 404,
    errors.NotEnded: 409,
    errors.RequestNotKept: 409,
    errors.GenerationGone: 410,
    errors.BodyTooLarge: 413,
    errors.IdempotencyConflict: 422,
    errors.LimitExceeded: 429,
    errors.StorageUnavailable: 503,
}

NO_RETRY = {"x-should-retry": "false"}
"""Headers of every error of an accepted generation: the SDKs repeat a POST on 409, 429 and 5xx by themselves, and each
repetition would be another generation, and another bill."""


IS_FULL = "This gateway has reached its connection limit; try again in a moment."
IS_DRAINING = "This gateway is being restarted; accepted generations continue and can be read again."


class ErrorDetail(msgspec.Struct):
    message: str
    type: str | None
    param: str | None
    code: str | None


class Error(msgspec.Struct):
    error: ErrorDetail


class JSONResponse(Response):
    """JSON encoded by msgspec, which takes a tenth of the standard library's time for a long answer."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


def error_response(
    status: int, message: str, code: str | None, param: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    return JSONResponse(Error(ErrorDetail(message, _type(status), param, code)), status, headers)


def _type(status: int) -> str:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    if status == HTTPStatus.UNAUTHORIZED:
        return "authentication_error"
    return "server_error" if status >= 500 else "invalid_request_error"


async def on_broker_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, errors.BrokerError)  # noqa: S101 - what the handler is registered for
    status = status_of(error)
    headers: dict[str, str] = {}
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["retry-after"] = "1"
    if isinstance(error, errors.LimitExceeded):
        headers["retry-after"] = str(error.retry_after)
    if status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, errors.BodyTooLarge):
        headers["connection"] = "close"  # the rest of the body is not read
    if isinstance(error, errors.IdempotencyConflict | errors.NotEnded | errors.RequestNotKept):
        headers |= NO_RETRY
    return error_response(status, error.message, error.code, error.param, headers)


def status_of(error: errors.BrokerError) -> int:
    """Return the HTTP status of an error."""
    return next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500)


def item_error(error: errors.BrokerError) -> records.ItemError:
    """Return the record of an error that concerns one item of a request."""
    status = status_of(error)
    wait = 1 if status == HTTPStatus.SERVICE_UNAVAILABLE else getattr(error, "retry_after", UNSET)
    return records.ItemError(
        records.ItemErrorDetail(error.message, _type(status), error.param, error.code, status, wait)
    )


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer the framework's own errors: unknown routes and wrong methods."""
    assert isinstance(error, HTTPException)  # noqa: S101 - what the handler is registered for
    status = error.status_code
    headers = dict(error.headers or {})
    if status == HTTPStatus.NOT_FOUND:
        return error_response(404, _unknown_url(request), "unknown_url", "path", headers)
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        message = (
            f"Method {request.method} is not allowed for this path; allowed: {headers.get('Allow', 'other methods')}."
        )
        return error_response(405, message, "method_not_allowed", "method", headers)
    return error_response(status, error.detail, HTTPStatus(status).phrase.lower().replace(" ", "_"), None, headers)


_OTHER_APIS = re.compile(
    r"(/v1)*/(responses|completions|chat|embeddings|messages|complete|audio|images|moderations|engines|api)\b", re.ASCII
)
"""Paths of the other APIs of the same clients, and those of clients whose base URL has no `/v1`, or two."""


def _unknown_url(request: Request) -> str:
    """Return the message of a 404. Most clients have a wrong base URL, or use an API that this gateway lacks."""
    path = request.url.path
    message = f"The path {path[:200]} does not exist."
    if request.method == "POST" or _OTHER_APIS.match(path):
        message += " Create completions with POST /v1/chat/completions or POST /v1/generations."
    elif path.endswith("/") and path != "/":
        message += " Paths do not end with a slash."
    return message


async def on_disconnect(_: Request, __: Exception) -> Response:
    """Answer a client that disconnected while it sent the request: nginx's status for it, which only the log shows."""
    return Response(status_code=499)


def full_error() -> JSONResponse:
    headers = {"retry-after": str(random.randint(1, 5))}
    return error_response(HTTPStatus.SERVICE_UNAVAILABLE, IS_FULL, "server_full", None, headers)


def draining_error(headers: dict[str, str]) -> JSONResponse:
    return error_response(HTTPStatus.SERVICE_UNAVAILABLE, IS_DRAINING, "server_draining", None, headers)


# Statuses with which an upstream refuses the request itself: they are passed on to the caller.
_PASSED_ON = frozenset({400, 403, 404, 413, 422})
_BY_CODE = {
    "upstream_rate_limited": 429,
    "upstream_timeout": 504,
    "timeout": 504,
    "storage_full": 503,
    "queue_timeout": 503,
    "attempts_exhausted": 500,
}


def generation_error(generation: Generation) -> JSONResponse:
    """Return the response for a generation that failed or was cancelled, to a caller that waits for its completion."""
    if generation.status == "cancelled":
        return error_response(409, "The generation was cancelled.", "generation_cancelled", None, dict(NO_RETRY))
    error = generation.error or {}
    code = error.get("code")
    upstream_status = error.get("status")
    status = upstream_status if upstream_status in _PASSED_ON else _BY_CODE.get(str(code), 502)
    headers = dict(NO_RETRY)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        headers["retry-after"] = str(max(1, round(float(error.get("retry_after") or 1))))
    detail = ErrorDetail(error.get("message", ""), error.get("type"), error.get("param"), error.get("code"))
    return JSONResponse(Error(detail), status, headers)


_MESSAGES = {
    "headers_too_large": "The request target and headers are longer than 32 KiB.",
    "request_timeout": "The request was not received in time.",
    "invalid_http": "The received data is not an HTTP request.",
}


def bare_error(status: int, code: str) -> bytes:
    """Return a complete response, the last one of its connection, for data that never became a request."""
    request_id = new_request_id()
    logger.warning("refused: %d %s (%s)", status, code, request_id)
    body = bytes(error_response(status, _MESSAGES[code], code).body)
    return (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nx-request-id: {request_id}\r\nconnection: close\r\n\r\n"
    ).encode() + body


def new_request_id() -> str:
    return "req_" + secrets.token_hex(12)
