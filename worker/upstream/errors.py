"""`UpstreamError`, which carries what readers are told about a failed call and whether to repeat it."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from worker.upstream.error_forms import longest_text, read_error

Json = dict[str, Any]
MAX_MESSAGE = 2000
_NAME = re.compile(r"[\w./:-]{1,64}", re.ASCII)
REQUEST_STATUSES = frozenset({400, 403, 404, 413, 422})  # errors of the request, which are passed on to the caller
_PERMANENT_CODES = frozenset({"upstream_auth", "internal_error", "output_too_large", "storage_full", "timeout"})
"""Codes of errors that another call would meet again, or that the upstream did not cause: no call is paid for twice."""


class UpstreamError(Exception):
    """The upstream did not respond, or its response is not a complete completion."""

    def __init__(
        self,
        code: str | None,
        message: str,
        *,
        type: str = "server_error",  # noqa: A002 - the name on the wire
        param: str | None = None,
        status: int | None = None,
        retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(code)  # not the message, which may quote the prompt: tracebacks are logged
        self.code = code
        self.message = message
        self.type = type
        self.param = param
        self.status = status
        """The upstream's own status, if it may be passed on."""
        self.retryable = retryable
        """Whether the same call may succeed if it is repeated, before any token was published."""
        self.retry_after = retry_after

    @property
    def restartable(self) -> bool:
        """Whether another attempt may succeed, for a generation with the policy `restart`."""
        return self.retryable or (self.status is None and self.code not in _PERMANENT_CODES)

    def to_json(self) -> Json:
        body: Json = {"message": self.message, "type": self.type, "code": self.code}
        for name in ("param", "status", "retry_after"):
            value = getattr(self, name)
            if value is not None:
                body[name] = value
        return body


def from_response(status: int, headers: Mapping[str, str], body: object, secrets: Sequence[str]) -> UpstreamError:
    """Return the error for a response with a status other than 200."""
    message, kind, param, code = _details(body, secrets)
    if status in REQUEST_STATUSES:
        return UpstreamError(
            code,
            message or f"The upstream answered with status {status}.",
            type=kind or "invalid_request_error",
            param=param,
            status=status,
        )
    if status == 401:
        return UpstreamError("upstream_auth", "The upstream rejected the broker's credentials.")
    if status == 429:
        return UpstreamError(
            "upstream_rate_limited",
            message or "The upstream's rate limit was reached.",
            type=kind or "rate_limit_error",
            param=param,
            status=status,
            retryable="insufficient_quota" not in (code, kind),  # waiting does not help
            retry_after=_retry_after(headers),
        )
    if 300 <= status < 400:
        return UpstreamError("bad_upstream_response", "The upstream answered with a redirect.")
    text = f"The upstream answered with status {status}" + (f": {message}" if message else ".")
    return UpstreamError(
        "upstream_error", text, retryable=status >= 500 or status in (408, 409), retry_after=_retry_after(headers)
    )


def from_stream_error(error: object, secrets: Sequence[str]) -> UpstreamError:
    """Return the error for one that the upstream reported in mid-stream, or instead of a stream."""
    message, kind, param, code = _details({"error": error}, secrets)
    message = message or _sanitize(longest_text(error), secrets) or "The upstream reported an error."
    return UpstreamError(code or "upstream_error", message, type=kind or "server_error", param=param)


def from_broken_connection(*, started: bool) -> UpstreamError:
    """Return the error for a broken connection. After the first chunk (`started`) the completion is truncated."""
    if started:
        return UpstreamError(
            "upstream_truncated",
            "The connection to the upstream broke before the completion was finished.",
            retryable=True,
        )
    return UpstreamError("upstream_error", "The connection to the upstream broke.", retryable=True)


def _details(body: object, secrets: Sequence[str]) -> tuple[str, str | None, str | None, str | None]:
    """Return (message, type, param, code) of an error body. None of them contains a secret of ours. The code is logged,
    so it must be a name: a sentence may quote the prompt."""
    error = read_error(body)
    codes = [_sanitize(code, secrets) for code in error.codes]
    code = next((code for code in codes if code and _is_name(code)), None)
    return (
        _sanitize(error.message, secrets) or "",
        _sanitize(error.type, secrets),
        _sanitize(error.param, secrets),
        code,
    )


def _is_name(code: str) -> bool:
    """Return whether a code is a name. Sentences are not, and numbers differ in meaning between providers."""
    return _NAME.fullmatch(code) is not None and not code.lstrip("-").isdigit()


def _sanitize(value: object, secrets: Sequence[str]) -> str | None:
    if not isinstance(value, str | int) or isinstance(value, bool):
        return None
    text = str(value)
    for secret in secrets:
        text = text.replace(secret, "***")
    return text[:MAX_MESSAGE].encode("utf-8", "replace").decode()  # replaces half surrogate pairs


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds in `retry-after-ms` or `retry-after` (seconds or a date)."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        value = headers.get("retry-after")
        if not value:
            return None
        if value.strip().replace(".", "", 1).isdigit():
            return float(value)
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
