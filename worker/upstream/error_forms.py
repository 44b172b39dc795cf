"""Recognizes and reads the forms in which providers report errors in a stream, or instead of one.

Known forms: `error` as an object or text, a list of `errors`, an event named `error`, `error` as `object` or `type`,
a status object (`base_resp`) whose code is not 0, code and message at the top level, the same in a choice or in its
delta, and finish reasons that mean failure (vLLM, SGLang, OpenRouter, DeepSeek, Zhipu).
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

Json = dict[str, Any]
ERROR_EVENTS = frozenset({b"error", b"exception", b"failed"})
_FAILURE_REASONS = frozenset(
    {"abort", "aborted", "failed", "failure", "cancelled", "canceled", "timeout", "overloaded", "unavailable"}
    | {"insufficient_system_resource", "malformed_function_call"}
)
_MESSAGE_FIELDS = (
    *("message", "msg", "detail", "error_description", "error_message", "error_msg", "errorMessage", "errmsg"),
    *("status_msg", "statusMsg", "exception", "description", "reason", "title", "faultstring", "text", "details"),
    *("error", "errors"),
)
"""Names of a provider's message, in any capitalization, the most specific first."""
_COMMON_FIELDS = frozenset(
    {"errorMessage", "statusMsg", "exception", "description", "faultstring", "text", "details", "error", "errors"}
)
_MARKING_FIELDS = tuple(name for name in _MESSAGE_FIELDS if name not in _COMMON_FIELDS)
"""Names that, together with a code or a status, mark an object as an error. The others also occur elsewhere."""
_CODES = ("code", "error_code", "err_code", "errcode", "errno", "status_code", "statusCode")
_CODE_NAMES = ("code", "error_code", "status", "status_code")
"""Names of the code that is passed on."""
_SUCCESS = frozenset({"", "0", "200", "ok", "success", "succeeded", "none", "null", "false"})
_STATUS_OBJECTS = ("base_resp", "baseResp")


def reported_error(fields: Json, choices: list[Json], event: bytes = b"") -> object:
    """Return the error that a payload with these choices certainly reports, or None."""
    if (error := _error_in(fields)) is not None:
        return error
    if choices:
        return _error_of_choices(fields, choices)
    kind = fields.get("object"), fields.get("type")
    if event in ERROR_EVENTS or "error" in kind or fields.get("success") is False or _has_bad_code(fields):
        return fields
    return None


def _error_in(fields: Json) -> object:
    for name in ("error", "errors"):
        inner: object = fields.get(name)
        if is_error(inner):
            # Fastify and Spring send the name of the status as `error`, and the message next to it.
            return inner if _is_described(inner) or not _has_message(fields) else fields
    for name in _STATUS_OBJECTS:
        status = get_field(fields, name)
        codes = [get_field(status, code) for code in ("status_code", "statusCode")]
        if not all(is_success(code) for code in codes if code is not None):
            return status
    return None


def _error_of_choices(fields: Json, choices: list[Json]) -> object:
    speaking = any(choice.get("delta") for choice in choices)
    for choice in choices:
        delta = cast(Json, choice.get("delta") or {})
        for place in (choice, delta):
            if (error := _error_in(place)) is not None:
                return error
        if not speaking and _has_message(choice) and _has_bad_code(choice):
            return choice
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and is_failure(reason):
            return {"message": f"The upstream ended the completion with the finish reason `{reason.strip()}`."}
    silent = not any(get_field(choice.get("delta"), "content") for choice in choices)
    return fields if silent and _has_message(fields) and _has_bad_code(fields) else None


def is_failure(reason: str) -> bool:
    """Return whether a finish reason means that the completion failed."""
    word = reason.strip().lower()
    return word in _FAILURE_REASONS or "error" in word or "exception" in word


def is_error(value: object) -> bool:
    """Return whether an `error` value reports an error: it is not empty and does not report success."""
    if isinstance(value, str):
        return not is_success(value)
    if isinstance(value, list):
        return any(map(is_error, cast("list[object]", value)))
    if not isinstance(value, dict):
        return bool(value)
    fields = cast(Json, value)
    words = next((fields[name] for name in _MARKING_FIELDS if fields.get(name)), None)
    if words is not None:
        return not is_success(words)
    codes = error_codes(fields)
    return not all(map(is_success, codes)) if codes else any(fields.values())


def error_codes(fields: Json) -> list[object]:
    """Return the codes that an object has under the usual names."""
    return [fields[name] for name in _CODES if fields.get(name) is not None]


def _has_bad_code(fields: Json) -> bool:
    """Return whether an object has a message together with a code or a status of a failure."""
    if not _has_message(fields):
        return False
    status = fields.get("status")
    if isinstance(status, int) and not isinstance(status, bool) and status >= 400:
        return True
    if isinstance(status, str) and ("err" in status.lower() or "fail" in status.lower()):
        return True
    return not all(map(is_success, error_codes(fields)))


def _is_described(value: object) -> bool:
    return isinstance(value, list) or (isinstance(value, dict) and _has_message(cast(Json, value)))


def _has_message(fields: Json) -> bool:
    return any(fields.get(name) for name in _MARKING_FIELDS)


def is_success(code: object) -> bool:
    """Return whether a code, or a word in its place, reports success."""
    return str(code).strip().lower() in _SUCCESS


def get_field(value: object, name: str) -> Any:
    """Return a field of `value`, or None if `value` is not an object."""
    return cast(Json, value).get(name) if isinstance(value, dict) else None


class ErrorFields(NamedTuple):
    """The fields of an error, as the provider sent them."""

    message: str
    type: object
    param: object
    codes: list[object]
    """Candidates for the code, the preferred one first."""


def read_error(body: object) -> ErrorFields:
    """Return the fields of an error body in OpenAI's form or another known one."""
    fields = _first_object(body)
    error: object = fields.get("error") or fields.get("errors") or body
    # Fastify and Spring send a name or a flag as `error`, and the message next to it.
    message = _find_message(cast(object, error)) if isinstance(error, dict | list) else ""
    fields = _first_object(cast(object, error))
    codes: list[object] = [fields.get(name) for name in _CODE_NAMES]
    return ErrorFields(message or _find_message(body), fields.get("type"), fields.get("param"), codes)


def longest_text(error: object) -> str:
    """Return the longest text in an object that has no message under a usual name."""
    return max((value for value in _first_object(error).values() if isinstance(value, str)), key=len, default="")


def _first_object(value: object) -> Json:
    """Return an object as it is, the first object of a list (Gemini sends errors in a list), otherwise an empty one."""
    listed: list[object] = cast("list[object]", value) if isinstance(value, list) else [value]
    objects = [cast(Json, one) for one in listed if isinstance(one, dict)]
    return objects[0] if objects else {}


def _find_message(value: object, depth: int = 5) -> str:
    """Return the provider's message from text, from an object that has it under a usual name, from an object nested in
    that, or from a list of such objects, as in FastAPI's validation errors."""
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
    location = fields.get("loc")
    if text and isinstance(location, list):
        text = f"{'.'.join(map(str, cast('list[object]', location)))}: {text}"
    raw = get_field(fields.get("metadata"), "raw")  # OpenRouter: the provider's own message
    return f"{text}: {raw}" if text and isinstance(raw, str) else text
