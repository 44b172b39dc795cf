"""The errors of the client: one tree, with `TokencastError` as its root."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, cast


class TokencastError(Exception):
    """Root of all errors of the client."""

    @property
    def message(self) -> str:
        return str(self)


class Misconfigured(TokencastError, ValueError):
    """The URL of the gateway, the API key, a proxy or a certificate file cannot be used."""


class InvalidRequest(TokencastError, ValueError):
    """A request cannot be sent: it is not valid JSON."""


class Unreachable(TokencastError, ConnectionError):
    """The gateway does not respond."""


class UnexpectedResponse(TokencastError):
    """The server is not a Tokencast gateway, or not one that this version knows."""


class RequestRefused(TokencastError):
    """The gateway responded with an error. Its subclasses tell the status."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None = None,
        param: str | None = None,
        type: str | None = None,  # noqa: A002 - the name of the field
        request_id: str | None = None,
        retry_after: float | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        """Error code, such as `generation_not_found`."""
        self.param = param
        """The parameter that is wrong, if it is known."""
        self.type = type
        self.request_id = request_id
        """Id of the request, which the gateway's log contains too."""
        self.retry_after = retry_after
        """Seconds after which a new request can succeed; None if the gateway did not name a time."""
        self.body: Mapping[str, Any] = body or {}
        """The JSON of the response."""


class BadRequest(RequestRefused):
    """400, 413, 415, 422: the request is not valid."""


class Unauthorized(RequestRefused):
    """401: the API key is missing or unknown."""


class Forbidden(RequestRefused):
    """403: the API key does not allow this."""


class NotFound(RequestRefused):
    """404: there is no such generation, model, group or upstream. `code` tells which."""


class Conflict(RequestRefused):
    """409, or an Idempotency-Key that was used with another body."""


class Gone(RequestRefused):
    """410: the generation was deleted or has expired."""


class RateLimited(RequestRefused):
    """429: a limit is reached. `retry_after` is the delay that the gateway asks for."""


class ServerError(RequestRefused):
    """5xx: the gateway, or a proxy before it, cannot serve the request now."""


class WaitTimeout(TokencastError, TimeoutError):
    """The generation has not ended in time. It continues."""

    def __init__(self, id: str, timeout: float) -> None:  # noqa: A002 - the name of the field
        super().__init__(f"{id} has not ended within {timeout:g} s; it continues.")
        self.id = id


class WebhookVerificationError(TokencastError):
    """A webhook is not authentic, or is too old."""


_BY_STATUS: dict[int, type[RequestRefused]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    429: RateLimited,
}
_BY_CODE: dict[str | None, type[RequestRefused]] = {"idempotency_conflict": Conflict}


def refusal(
    status: int,
    error: Mapping[str, Any],
    *,
    request_id: str | None = None,
    retry_after: float | None = None,
    body: Mapping[str, Any] | None = None,
) -> RequestRefused:
    """Return the exception for an error object with a status."""
    code = cast("str | None", error.get("code"))
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status) or (ServerError if status >= 500 else BadRequest)
    return kind(
        str(error["message"]),
        status=status,
        code=code,
        param=error.get("param"),
        type=error.get("type"),
        request_id=request_id,
        retry_after=retry_after,
        body=body,
    )


def error_from(status: int, headers: Mapping[str, str], content: bytes, url: str) -> RequestRefused:
    """Return the exception for an error response; one of a proxy has another form."""
    body = _object(content)
    error: object = body.get("error")
    if not isinstance(error, dict) or not isinstance(cast("dict[str, Any]", error).get("message"), str):
        phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
        error = {"message": f"{url} responded with {f'{status} {phrase}'.strip()}; is it Tokencast?"}
    return refusal(
        status,
        cast("dict[str, Any]", error),
        request_id=headers.get("x-request-id"),
        retry_after=seconds(headers.get("retry-after")),
        body=body,
    )


def seconds(text: str | None) -> float | None:
    """Parse a Retry-After header. None for a date, which gateways do not send."""
    return float(text) if text is not None and text.isascii() and text.isdigit() else None


def _object(content: bytes) -> dict[str, Any]:
    try:
        body: object = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", body) if isinstance(body, dict) else {}
