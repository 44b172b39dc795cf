"""Recognizes the forms in which providers report errors in a stream, or instead of one.

Known forms: `error` as an object or text, a list of `errors`, an event named `error`, `error` as `object` or `type`,
a status object (`base_resp`) whose code is not 0, code and message at the top level, the same in a choice or in its
delta, and finish reasons that mean failure (vLLM, SGLang, OpenRouter, DeepSeek, Zhipu).
"""

from __future__ import annotations

from typing import Any, cast

Json = dict[str, Any]
ERROR_EVENTS = frozenset({b"error", b"exception", b"failed"})
_FAILURE_REASONS = frozenset(
    {"abort", "aborted", "failed", "failure", "cancelled", "canceled", "timeout", "overloaded", "unavailable"}
    | {"insufficient_system_resource", "malformed_function_call"}
)
_MESSAGE_FIELDS = (
    "message",
    "msg",
    "detail",
    "error_description",
    "error_msg",
    "error_message",
    "errmsg",
    "status_msg",
    "title",
    "reason",
)
_CODES = ("code", "error_code", "err_code", "errcode", "errno", "status_code", "statusCode")
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
    words = next((fields[name] for name in _MESSAGE_FIELDS if fields.get(name)), None)
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
    return any(fields.get(name) for name in _MESSAGE_FIELDS)


def is_success(code: object) -> bool:
    """Return whether a code, or a word in its place, reports success."""
    return str(code).strip().lower() in _SUCCESS


def get_field(value: object, name: str) -> Any:
    """Return a field of `value`, or None if `value` is not an object."""
    return cast(Json, value).get(name) if isinstance(value, dict) else None
