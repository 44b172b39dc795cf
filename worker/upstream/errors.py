"""What can be wrong with an upstream, as one exception that says what readers are told and whether to try again."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

Json = dict[str, Any]
LONGEST_MESSAGE = 2000
_NAME = re.compile(r"[\w./:-]{1,64}", re.ASCII)
OF_THE_REQUEST = frozenset({400, 403, 404, 413, 422})  # what the upstream says about the request, for the caller
_LASTING = frozenset({"upstream_auth", "internal_error", "output_too_large", "storage_full", "timeout"})
"""What another call would meet again, or what was no fault of the upstream: it is not paid for twice."""


class UpstreamError(Exception):
    """The upstream did not answer, or not as it should have."""

    def __init__(
        self,
        code: str | None,
        message: str,
        *,
        type: str = "server_error",  # noqa: A002 - the wire's word
        param: str | None = None,
        status: int | None = None,
        retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(code)  # the message may quote the prompt, and a traceback is a log
        self.code = code
        self.message = message
        self.type = type
        self.param = param
        self.status = status
        """The upstream's own, where it may be passed on."""
        self.retryable = retryable
        """Whether the same call may succeed if repeated, as long as no token was shown."""
        self.retry_after = retry_after

    @property
    def restartable(self) -> bool:
        """Whether another attempt may fare better, for a generation that asks for one."""
        return self.retryable or (self.status is None and self.code not in _LASTING)

    def to_json(self) -> Json:
        body: Json = {"message": self.message, "type": self.type, "code": self.code}
        for name in ("param", "status", "retry_after"):
            value = getattr(self, name)
            if value is not None:
                body[name] = value
        return body


def from_response(status: int, headers: Mapping[str, str], body: object, secrets: Sequence[str]) -> UpstreamError:
    """For an answer that is not a 200."""
    message, kind, param, code = _details(body, secrets)
    if status in OF_THE_REQUEST:
        return UpstreamError(
            code, message or f"The upstream answered {status}.", type=kind or "invalid_request_error", param=param,
            status=status,
        )  # fmt: skip
    if status == 401:
        return UpstreamError("upstream_auth", "The upstream refuses the broker's credentials.")
    if status == 429:
        return UpstreamError(
            "upstream_rate_limited",
            message or "The upstream has too many requests.",
            type=kind or "rate_limit_error",
            param=param,
            status=status,
            retryable="insufficient_quota" not in (code, kind),  # no waiting helps
            retry_after=_retry_after(headers),
        )
    if 300 <= status < 400:
        return UpstreamError("bad_upstream_response", "The upstream answered with a redirect.")
    told = f"The upstream answered {status}" + (f": {message}" if message else ".")
    return UpstreamError(
        "upstream_error", told, retryable=status >= 500 or status in (408, 409), retry_after=_retry_after(headers)
    )


def from_stream_error(error: object, secrets: Sequence[str]) -> UpstreamError:
    """For an error in mid-stream, or instead of a stream."""
    message, kind, param, code = _details({"error": error}, secrets)
    message = message or _any_text(error, secrets) or "The upstream reported an error."
    return UpstreamError(code or "upstream_error", message, type=kind or "server_error", param=param)


def _any_text(error: object, secrets: Sequence[str]) -> str | None:
    """The longest text in an object that has none under a usual name."""
    texts = [value for value in _first(error).values() if isinstance(value, str)]
    return _clean(max(texts, key=len, default=""), secrets)


def from_broken_connection(*, begun: bool) -> UpstreamError:
    """For a connection that broke; after the first chunk that is a completion cut short."""
    if begun:
        return UpstreamError(
            "upstream_truncated", "The connection to the upstream broke before the completion ended.", retryable=True
        )
    return UpstreamError("upstream_error", "The connection to the upstream broke.", retryable=True)


def _details(body: object, secrets: Sequence[str]) -> tuple[str, str | None, str | None, str | None]:
    """(message, type, param, code) of an error body in OpenAI's shape, or in one of those seen elsewhere. None of
    them holds a secret of ours, and the code, which is logged, is a name: a sentence may quote the prompt."""
    fields = _first(body)
    error: object = fields.get("error") or fields.get("errors") or body
    # A name or a flag as `error`, with the words next to it, is Fastify's and Spring's form.
    said = _words(cast(object, error)) if isinstance(error, dict | list) else ""
    message = _clean(said or _words(body), secrets) or ""
    fields = _first(cast(object, error))
    kind, param = (_clean(fields.get(name), secrets) for name in ("type", "param"))
    codes = [_clean(fields.get(name), secrets) for name in ("code", "error_code", "status", "status_code")]
    return message, kind, param, next((code for code in codes if code and _is_name(code)), None)


def _first(value: object) -> Json:
    """The value if it is an object, the first object of a list, as Gemini sends its errors, else an empty one."""
    listed: list[object] = cast("list[object]", value) if isinstance(value, list) else [value]
    objects = [cast(Json, one) for one in listed if isinstance(one, dict)]
    return objects[0] if objects else {}


def _is_name(code: str) -> bool:
    """Whether it is a name, not a sentence; nor a number, which means something else with each provider."""
    return _NAME.fullmatch(code) is not None and not code.lstrip("-").isdigit()


_WORDS = (
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


def _words(value: object, depth: int = 5) -> str:
    """The provider's words, wherever they stand: text, an object that has them under a usual name, however it is
    written, or in an object in it, or a list of such objects, as those FastAPI names each wrong field with."""
    if isinstance(value, str):
        text = value.strip()
        return "" if text.startswith("<") else text  # a page
    if depth == 0:
        return ""
    if isinstance(value, list):
        return "; ".join(filter(None, (_words(one, depth - 1) for one in cast("list[object]", value)[:10])))
    if not isinstance(value, dict):
        return ""
    fields = cast(Json, value)
    lowered = {key.lower(): one for key, one in reversed(fields.items())}
    said = next(filter(None, (_words(lowered.get(name.lower()), depth - 1) for name in _WORDS)), "")
    if not said:
        inner = [cast(object, one) for one in fields.values() if isinstance(one, dict | list)]
        said = next(filter(None, (_words(one, depth - 1) for one in inner)), "")
    where, metadata = fields.get("loc"), fields.get("metadata")
    if said and isinstance(where, list):
        said = f"{'.'.join(map(str, cast('list[object]', where)))}: {said}"
    raw = cast(Json, metadata).get("raw") if isinstance(metadata, dict) else None  # OpenRouter's: whom it asked
    return f"{said}: {raw}" if said and isinstance(raw, str) else said


def _clean(value: object, secrets: Sequence[str]) -> str | None:
    if not isinstance(value, str | int) or isinstance(value, bool):
        return None
    text = str(value)
    for secret in secrets:
        text = text.replace(secret, "***")
    return text[:LONGEST_MESSAGE].encode("utf-8", "replace").decode()  # half a surrogate pair is no text


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from `retry-after-ms` or `retry-after` (seconds or a date)."""
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
