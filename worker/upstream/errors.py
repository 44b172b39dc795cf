"""`UpstreamError`, which carries what readers are told about a failed call and whether to repeat it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from worker.upstream.error_forms import longest_text, read_error
from worker.upstream.rate_limits import RateLimits, read_rate_limits, retry_after

Json = dict[str, Any]
MAX_MESSAGE = 2000
_NAME = re.compile(r"[\w./:-]{1,64}", re.ASCII)
REQUEST_STATUSES = frozenset({400, 403, 404, 413, 422})  # errors of the request, which are passed on to the caller
_PERMANENT_CODES = frozenset({"upstream_auth", "internal_error", "output_too_large", "storage_full", "timeout"})
"""Codes of errors that another call would meet again, or that the upstream did not cause: no call is paid for twice."""
Outcome = Literal["busy", "fail", "denied", "request"]
"""What a failed call means for the upstream: `busy`, it refuses calls for now; `fail`, it does not work; `denied`, it
refuses the key; `request`, the request itself fails, or the worker, and the upstream is not to blame."""
Cause = Literal["dns", "refused", "timeout", "tls", "unreachable", "reset"]
"""Class of a connection error: the host name cannot be resolved; connections are refused; none is made in time; TLS
fails, or a certificate is not trusted; no route, or another error; a connection was closed early."""
_SPENT = frozenset({"insufficient_quota", "insufficient_balance", "billing_hard_limit_reached", "billing_not_active"})
"""Codes and types of an account without credit: waiting does not help."""
_RATE_WORDS = re.compile(r"rate_?limit|too_many_requests|resource_?exhausted|overloaded|throttl", re.IGNORECASE)
_KEY_WORDS = re.compile(r"api_?key|authentication|permission|unauthorized|billing", re.IGNORECASE)
_MODERATION = re.compile(r"moderat|flagged|content.?(filter|polic)|safety", re.IGNORECASE)
_TEMPORARY = frozenset({408, 409, 425})  # client errors that may be none at the next call


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
        outcome: Outcome | None = None,
        rate_limits: RateLimits | None = None,
        cause: Cause | None = None,
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
        """Seconds until the next call may succeed, if the upstream told."""
        self.outcome: Outcome = outcome or _default_outcome(code, status)
        self.rate_limits = rate_limits
        self.cause: Cause | None = cause
        """For operators, like `http_status`: neither is part of what readers are told."""
        self.http_status: int | None = None
        """Status of the response, if there was one."""

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


def _default_outcome(code: str | None, status: int | None) -> Outcome:
    if code == "upstream_auth":
        return "denied"
    return "request" if code in _PERMANENT_CODES or status in REQUEST_STATUSES else "fail"


def from_response(status: int, headers: Mapping[str, str], body: object, secrets: Sequence[str]) -> UpstreamError:
    """Return the error for a response with a status other than 200."""
    error = _from_response(status, headers, body, secrets)
    error.rate_limits = read_rate_limits(headers)
    error.http_status = status
    return error


def _from_response(status: int, headers: Mapping[str, str], body: object, secrets: Sequence[str]) -> UpstreamError:
    message, kind, param, code = _details(body, secrets)
    outcome = _outcome_of_status(status, (code, kind, message), wait=retry_after(headers))
    if status in REQUEST_STATUSES:
        return UpstreamError(
            code,
            message or f"The upstream answered with status {status}.",
            type=kind or "invalid_request_error",
            param=param,
            status=status,
            outcome=outcome,
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
            retryable=outcome == "busy",
            retry_after=retry_after(headers),
            outcome=outcome,
        )
    if 300 <= status < 400:
        return UpstreamError("bad_upstream_response", "The upstream answered with a redirect.")
    text = f"The upstream answered with status {status}" + (f": {message}" if message else ".")
    return UpstreamError(
        "upstream_error",
        text,
        retryable=status >= 500 or status in (408, 409),
        retry_after=retry_after(headers),
        outcome=outcome,
    )


def _outcome_of_status(status: int, words: Sequence[str | None], *, wait: float | None) -> Outcome:
    """Return what a status means. `words`: code, type and message of the error; `wait`: seconds to wait, if told."""
    if status in (401, 402):
        return "denied"
    if status == 403:  # a moderated request is its own fault; anything else concerns the key
        return "request" if _MODERATION.search(" ".join(filter(None, words))) else "denied"
    if status == 429:
        return "denied" if _SPENT & set(words) else "busy"
    if status == 529 or (status == 503 and wait is not None):
        return "busy"
    return "request" if 400 <= status < 500 and status not in _TEMPORARY else "fail"


def from_stream_error(error: object, secrets: Sequence[str]) -> UpstreamError:
    """Return the error for one that the upstream reported in mid-stream, or instead of a stream."""
    message, kind, param, code = _details({"error": error}, secrets)
    message = message or _sanitize(longest_text(error), secrets) or "The upstream reported an error."
    return UpstreamError(
        code or "upstream_error",
        message,
        type=kind or "server_error",
        param=param,
        outcome=_outcome_of_report(error, (code, kind, message)),
    )


def _outcome_of_report(error: object, words: Sequence[str | None]) -> Outcome:
    """Return what an error without a status of its own means: by a status that it names as a number, or by its code and
    type."""
    for number in read_error({"error": error}).codes:
        if re.fullmatch(r"[45]\d\d", str(number), re.ASCII):
            return _outcome_of_status(int(str(number)), words, wait=None)
    names = " ".join(filter(None, words[:2]))
    if _SPENT & set(words):
        return "denied"
    if _RATE_WORDS.search(names):
        return "busy"
    if _KEY_WORDS.search(names):
        return "denied"
    return "request" if "invalid_request" in names else "fail"


def from_broken_connection(*, started: bool) -> UpstreamError:
    """Return the error for a broken connection. After the first chunk (`started`) the completion is truncated."""
    if started:
        return UpstreamError(
            "upstream_truncated",
            "The connection to the upstream broke before the completion was finished.",
            retryable=True,
            cause="reset",
        )
    return UpstreamError("upstream_error", "The connection to the upstream broke.", retryable=True, cause="reset")


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
