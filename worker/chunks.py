"""What one payload of an upstream means, and what is stored of it. The one place that decides it.

Liberal in what it takes, strict in what it stores: `data` is valid UTF-8 and JSON on one line, nested no deeper than
`broker.depth` allows, with a list of choices that are objects with a `delta`. A payload that is like that already is
stored verbatim, but for raw line breaks between tokens: those would let an upstream forge frames, and become spaces.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple, cast

import msgspec

from broker.completion import finish_reason
from broker.depth import MAX_DEPTH, is_too_deep
from broker.events import CHUNK, USAGE

Json = dict[str, Any]
LARGEST_INDEX = 1 << 31  # of a choice


class Chunk(NamedTuple):
    """What the log and the counting need of a payload."""

    type: bytes
    data: bytes
    tokens: int
    """1 if a delta holds anything but names (`role`, …): such chunks are counted if an upstream tells no usage."""
    finished: tuple[int, ...]
    """Indexes of the choices that end here."""
    error: object
    """The error that the payload reports, in the provider's own form; None if it reports none."""


class BadChunk(ValueError):
    """The upstream sent something that is not a chunk."""


class _Delta(msgspec.Struct):
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None


class _Choice(msgspec.Struct):
    delta: _Delta
    index: int = 0
    finish_reason: Any = None
    message: Any = None
    error: Any = None


class _Payload(msgspec.Struct):
    choices: list[_Choice]
    error: Any = None
    errors: Any = None
    base_resp: Any = None


_decode = msgspec.json.Decoder(_Payload).decode


def examine(payload: bytes, event: bytes = b"", *, streamed: bool = False) -> Chunk | None:
    """Return the chunk of an event's data, or None for a keep-alive: nothing, `null`, or an object that is neither a
    chunk, nor usage, nor an error. `event` is the event's name. `streamed`: there was text in deltas before, so that a
    whole `message` repeats it, as at the end of MiniMax's streams. Raises BadChunk if it is not JSON in valid UTF-8."""
    if b"\n" in payload or b"\r" in payload:
        payload = payload.replace(b"\n", b" ").replace(b"\r", b" ")
    # msgspec skips what it does not decode, invalid UTF-8 included, and readers' parsers would fail on it.
    if not payload.isascii():
        try:
            payload.decode()
        except UnicodeDecodeError:
            raise BadChunk("invalid UTF-8") from None
    if is_too_deep(payload):
        raise BadChunk(f"nested deeper than {MAX_DEPTH} levels")
    if event == b"error" or (len(payload) > _DIGITS_LIMIT and _MANY_DIGITS.search(payload)):
        return _examine_slowly(payload, event, streamed)
    try:
        parsed = _decode(payload)
    except msgspec.DecodeError:  # not of the usual form, or half a surrogate pair
        return _examine_slowly(payload, event, streamed)
    if len(parsed.choices) == 1 and parsed.base_resp is None and not parsed.error and not parsed.errors:
        (choice,) = parsed.choices
        delta = choice.delta
        calls = delta.tool_calls or delta.function_call
        # Nearly always. A delta without any of these may hold what has no field here, such as audio.
        if (
            (delta.content or delta.reasoning_content or delta.reasoning or delta.refusal or calls)
            and choice.finish_reason is None
            and choice.message is None
            and choice.error is None
            and choice.index >= 0
            and (delta.content is None or delta.content.__class__ is str)
            and not (calls and _ARGUMENTS_OBJECT.search(payload))
        ):
            return Chunk(CHUNK, payload, 1, (), None)
    return _examine_slowly(payload, event, streamed)


# --- the first and the last chunks of a stream, and those of unusual form ---------------------------------------------

_DIGITS_LIMIT = 4300  # of a number, for Python's own parser (sys.set_int_max_str_digits)
_ARGUMENTS_OBJECT = re.compile(rb'"arguments"\s*:\s*[{\[]')
_MANY_DIGITS = re.compile(rb"\d{%d}" % _DIGITS_LIMIT)


def _examine_slowly(payload: bytes, event: bytes, streamed: bool) -> Chunk | None:
    value = _parse(payload)
    wrapped = isinstance(value, list) and len(cast("list[object]", value)) == 1  # as Gemini wraps its errors
    if wrapped:
        value = cast("list[object]", value)[0]
    if value is None:
        return None
    if not isinstance(value, dict):
        raise BadChunk("not an object")
    fields = cast(Json, value)
    given = fields.get("choices")
    choices = _choices(given, streamed)
    error = reported_error(fields, choices, event)
    if not choices:
        return _without_choices(payload, fields, error, usual=given == [] and not wrapped)
    changed = not isinstance(given, list) or list(map(id, cast("list[object]", given))) != list(map(id, choices))
    data = _encode({**fields, "choices": choices}) if changed or wrapped else payload
    tokens = max([_tokens_of(choice.get("delta", {})) for choice in choices])
    finished = tuple([choice.get("index", 0) for choice in choices if finish_reason(choice.get("finish_reason"))])
    return Chunk(CHUNK, data, tokens, finished, error)


def _without_choices(payload: bytes, fields: Json, error: object, *, usual: bool) -> Chunk | None:
    """`usual`: `choices` is an empty list, as in a usage chunk of OpenAI's and in Azure's first chunk."""
    if error is not None:
        return Chunk(CHUNK, b"", 0, (), error)
    if isinstance(fields.get("usage"), dict):
        return Chunk(USAGE, payload if usual else _encode({**fields, "choices": []}), 0, (), None)
    return Chunk(CHUNK, payload, 0, (), None) if usual else None


def _choices(value: object, streamed: bool) -> list[Json]:
    """The choices of a chunk: each has an object as its `delta`, except a filter's verdict, and an index, if any, is a
    number."""
    listed = cast("list[object]", value) if isinstance(value, list) else [value]
    return [_choice(cast(Json, choice), streamed) for choice in listed if isinstance(choice, dict)]


def _choice(choice: Json, streamed: bool) -> Json:
    given, message, text = choice.get("delta"), choice.get("message"), choice.get("text")
    if isinstance(given, dict) and (given or not isinstance(message, dict)):
        delta = cast(Json, given)
    elif "delta" not in choice and "content_filter_results" in choice:  # Azure's verdict on text that came before
        return choice
    else:  # a whole message, as in an answer that is no stream; or the text of the older completions
        whole = cast(Json, message) if isinstance(message, dict) and not streamed else {}
        delta = {"content": text} if isinstance(text, str) and message is None else whole
        choice = {key: value for key, value in choice.items() if key != "message"}
    delta = _delta(delta)
    if delta is not given:
        choice = {**choice, "delta": delta}
    if "index" in choice and not _is_index(choice["index"]):
        choice = {**choice, "index": _index(choice["index"])}
    return choice


def _delta(delta: Json) -> Json:
    """A delta whose content is text or a list of parts, and whose calls have their arguments as text: readers join
    them. The same object if it is like that."""
    content, calls = delta.get("content"), delta.get("tool_calls")
    if isinstance(content, dict):
        delta = {**delta, "content": [content]}
    elif not isinstance(content, str | list | None):
        delta = {**delta, "content": _encode(content).decode()}
    if isinstance(calls, list):
        given = cast("list[object]", calls)
        changed = [_with_function(call, "function") for call in given]
        if list(map(id, changed)) != list(map(id, given)):
            delta = {**delta, "tool_calls": changed}
    return cast(Json, _with_function(delta, "function_call"))


def _with_function(holder: object, name: str) -> object:
    """What has a function under this name, with the arguments of that as text."""
    fields = cast(Json, holder) if isinstance(holder, dict) else {}
    function = fields.get(name)
    arguments: object = cast(Json, function).get("arguments") if isinstance(function, dict) else None
    if not isinstance(arguments, dict | list):
        return cast(object, holder)
    text = _encode(cast(object, arguments)).decode()
    return {**fields, name: {**cast(Json, function), "arguments": text}}


def _is_index(value: object) -> bool:
    return type(value) is int and 0 <= value < LARGEST_INDEX


def _index(value: object) -> int:
    """The index that a string or a float stands for, else 0."""
    text = str(value).removesuffix(".0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


_NAMES = frozenset({"role", "id", "index", "type", "name", "object", "finish_reason"})


def _tokens_of(delta: Json) -> int:
    return int(any(value for key, value in delta.items() if key not in _NAMES))


# --- errors, in the forms that providers use --------------------------------------------------------------------------

FAILING_REASONS = frozenset({"abort", "aborted", "error", "failed", "failure"})
_WORDS = ("message", "msg", "detail", "error_msg", "error_message", "errmsg", "status_msg")
_CODES = ("code", "error_code", "err_code", "errcode", "errno", "status_code", "statusCode")
_FINE = frozenset({"", "0", "200", "ok", "success", "succeeded", "none", "null", "false"})


def reported_error(fields: Json, choices: list[Json], event: bytes = b"") -> object:
    """Return the error that a payload reports, or None.

    Seen so far: `error` as an object or text, a list of `errors`, an event named `error`, `object` or `type` that says
    so, a status object (`base_resp`) whose code is not 0, code and message on the outermost level, an `error` in a
    choice, and the finish reasons `error` and `abort` (vLLM, SGLang, OpenRouter).
    """
    for name in ("error", "errors"):
        if _is_error(fields.get(name)):
            return fields[name]
    status = fields.get("base_resp")
    if isinstance(status, dict) and not _is_fine(cast(Json, status).get("status_code")):
        return cast(Json, status)
    if choices:
        return _error_of_choices(choices)
    if event == b"error" or "error" in (fields.get("object"), fields.get("type")) or _is_bare_error(fields):
        return fields
    return None


def _is_error(value: object) -> bool:
    """An `error` that is empty, or that says that all is well, is none."""
    if isinstance(value, str):
        return not _is_fine(value)
    if not isinstance(value, dict):
        return bool(value)
    fields = cast(Json, value)
    words = next((fields[name] for name in _WORDS if fields.get(name)), None)
    if words is not None:
        return not _is_fine(words)
    codes = [fields[name] for name in _CODES if fields.get(name) is not None]
    return not all(map(_is_fine, codes)) if codes else any(fields.values())


def _error_of_choices(choices: list[Json]) -> object:
    for choice in choices:
        reason = choice.get("finish_reason")
        if _is_error(choice.get("error")):
            return choice["error"]
        if isinstance(reason, str) and reason.strip().lower() in FAILING_REASONS:
            return {"message": f"The upstream ended the answer with the finish reason `{reason.strip()}`."}
    return None


def _is_bare_error(fields: Json) -> bool:
    """Words, and a code that is not fine, or a status, or nothing that would make them anything else."""
    if fields.get("usage") or not any(fields.get(name) for name in _WORDS):
        return fields.get("success") is False
    if any(not _is_fine(fields.get(name)) for name in _CODES) or fields.get("success") is False:
        return True
    status, kind = fields.get("status"), fields.get("type")
    if isinstance(status, int) and not isinstance(status, bool):
        return status >= 400
    if isinstance(status, str) and status:
        return (status.isupper() and not _is_fine(status)) or "err" in status.lower() or "fail" in status.lower()
    if isinstance(kind, str) and kind:
        return kind.lower().endswith(("error", "exception"))
    return not any(fields.get(name) for name in ("object", "event"))


def _is_fine(code: object) -> bool:
    return str(code).strip().lower() in _FINE


# --- JSON -------------------------------------------------------------------------------------------------------------


def _parse(payload: bytes) -> object:
    """Python's own parser: msgspec's refuses half a surrogate pair, which some upstreams split over two chunks. Not
    NaN, which Python takes and JavaScript does not. A blank payload is None."""
    if not payload.strip():
        return None
    try:
        return json.loads(payload.decode(), parse_constant=_refuse_constant)  # of bytes it would guess the encoding
    except (ValueError, RecursionError):
        raise BadChunk("invalid JSON") from None


def _refuse_constant(name: str) -> object:
    raise ValueError(name)


def _encode(value: object) -> bytes:
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    except ValueError:  # a number beyond what a float holds
        raise BadChunk("a number out of range") from None
