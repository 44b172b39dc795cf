"""`UpstreamError`, which carries what readers are told about a failed call and whether to repeat it."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

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
    message = message or _longest_text(error, secrets) or "The upstream reported an error."
    return UpstreamError(code or "upstream_error", message, type=kind or "server_error", param=param)


def _longest_text(error: object, secrets: Sequence[str]) -> str | None:
    """Return the longest text in an object that has no message under a usual name."""
    texts = [value for value in _first_object(error).values() if isinstance(value, str)]
    return _sanitize(max(texts, key=len, default=""), secrets)


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
    """Return (message, type, param, code) of an error body in OpenAI's form or another known one. None of them contains
    a secret of ours. The code is logged, so it must be a name: a sentence may quote the prompt."""
    fields = _first_object(body)
    error: object = fields.get("error") or fields.get("errors") or body
    # Fastify and Spring send a name or a flag as `error`, and the message next to it.
    text = _find_message(cast(object, error)) if isinstance(error, dict | list) else ""
    message = _sanitize(text or _find_message(body), secrets) or ""
    fields = _first_object(cast(object, error))
    kind, param = (_sanitize(fields.get(name), secrets) for name in ("type", "param"))
    codes = [_sanitize(fields.get(name), secrets) for name in ("code", "error_code", "status", "status_code")]
    return message, kind, param, next((code for code in codes if code and _is_name(code)), None)


def _first_object(value: object) -> Json:
    """Return an object as it is, the first object of a list (Gemini sends errors in a list), otherwise an empty one."""
    listed: list[object] = cast("list[object]", value) if isinstance(value, list) else [value]
    objects = [cast(Json, one) for one in listed if isinstance(one, dict)]
    return objects[0] if objects else {}


def _is_name(code: str) -> bool:
    """Return whether a code is a name. Sentences are not, and numbers differ in meaning between providers."""
    return _NAME.fullmatch(code) is not None and not code.lstrip("-").isdigit()


_MESSAGE_FIELDS = (
    *("message", "msg", "detail", "error_description", "error_message", "error_msg", "errorMessage", "errmsg"),
    *(
        "status_msg",
        "statusMsg",
        "exception",
        "description",
        "reason",
        "title",
        "faultstring",
        "text",
        "details",
        "error",
        "errors",
    ),
)


def _find_message(value: object, depth: int = 5) -> str:
    """Return the provider's message from text, from an object that has it under a usual name in any capitalization,
    from an object nested in that, or from a list of such objects, as in FastAPI's validation errors."""
    if isinstance(value, str):
        text = value.strip()
        return "" if text.startswith("<") else text  # an HTML page
    if depth == 0:
        return ""
    if isinstance(value, list):
        return "; ".join(filter(None, (_find_message(one, depth - 1) for one in cast("list[object]", value)[:10])))
    if not isinstance(value, dict):
        return ""
    fields = cast(Json, value)
    lowered = {key.lower(): one for key, one in reversed(fields.items())}
    text = next(filter(None, (_find_message(lowered.get(name.lower()), depth - 1) for name in _MESSAGE_FIELDS)), "")
    if not text:
        inner = [cast(object, one) for one in fields.values() if isinstance(one, dict | list)]
        text = next(filter(None, (_find_message(one, depth - 1) for one in inner)), "")
    where, metadata = fields.get("loc"), fields.get("metadata")
    if text and isinstance(where, list):
        text = f"{'.'.join(map(str, cast('list[object]', where)))}: {text}"
    raw = (
        cast(Json, metadata).get("raw") if isinstance(metadata, dict) else None
    )  # OpenRouter: the provider's own message
    return f"{text}: {raw}" if text and isinstance(raw, str) else text


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
