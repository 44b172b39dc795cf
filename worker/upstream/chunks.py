"""Decodes one payload of an upstream into the chunk that is stored. No other module decides what is stored.

Liberal in what it accepts, strict in what it stores: `data` is valid UTF-8 and JSON on one line, nested no deeper than
`broker.json_depth` allows, with a list of choices that are objects with a `delta`. A payload in that form is stored
verbatim, except that raw line breaks between tokens become spaces: they would let an upstream forge frames.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple, cast

import msgspec

from broker.completion.fold import finish_reason
from broker.events import CHUNK, USAGE
from broker.json_depth import MAX_DEPTH, is_too_deep
from worker.upstream.choices import INDEX_LIMIT, normalize_choices
from worker.upstream.error_forms import ERROR_EVENTS, error_codes, get_field, is_error, is_success, reported_error

Json = dict[str, Any]


class Chunk(NamedTuple):
    """The parts of a payload that the log, the counters and `Reply` need."""

    type: bytes
    data: bytes
    tokens: int
    """1 if a delta has a value other than names (`role`, …), otherwise 0. The sum replaces a missing usage."""
    finished: tuple[int, ...]
    """Indexes of the choices that end in this chunk."""
    error: object
    """The error that the payload reports, in the provider's own form; None if it reports none."""
    has_choices: bool = True
    """Whether the payload has a choice."""
    is_message: bool = False
    """Whether the text came as one complete message."""


class UnknownObject(NamedTuple):
    """An object that is not a chunk, not a usage and not certainly an error. It may be a keep-alive, or the reason why
    the response is never finished."""

    fields: object


class InvalidChunk(ValueError):
    """A payload is not a valid chunk."""


class _Delta(msgspec.Struct):
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None
    error: Any = None


class _Choice(msgspec.Struct):
    delta: _Delta
    index: int
    finish_reason: Any = None
    message: Any = None
    error: Any = None


class _Payload(msgspec.Struct):
    choices: list[_Choice]
    error: Any = None
    errors: Any = None
    base_resp: Any = None
    code: Any = None
    error_code: Any = None


_decode = msgspec.json.Decoder(_Payload).decode


def decode_payload(payload: bytes, event: bytes = b"", *, streamed: bool = False) -> Chunk | UnknownObject | None:
    """Return the chunk of an event's data, or None for a keep-alive: no data, `null`, `{"type": "ping"}`. `event`: name
    of the event. `streamed`: earlier chunks had text in deltas, so a complete `message` repeats it, as at the end of
    MiniMax's streams. Raises InvalidChunk if the data is not JSON in valid UTF-8."""
    if b"\n" in payload or b"\r" in payload:
        payload = payload.replace(b"\n", b" ").replace(b"\r", b" ")
    # msgspec skips fields that it does not decode, including invalid UTF-8 in them; readers' parsers would fail on it.
    if not payload.isascii():
        try:
            payload.decode()
        except UnicodeDecodeError:
            raise InvalidChunk("invalid UTF-8") from None
    if is_too_deep(payload):
        raise InvalidChunk(f"nested deeper than {MAX_DEPTH} levels")
    if event in ERROR_EVENTS or (len(payload) > _DIGITS_LIMIT and _MANY_DIGITS.search(payload)):
        return _decode_slowly(payload, event, streamed)
    try:
        parsed = _decode(payload)
    except msgspec.DecodeError:  # an unusual form, or half a surrogate pair
        return _decode_slowly(payload, event, streamed)
    if len(parsed.choices) == 1 and not (
        parsed.error or parsed.errors or parsed.base_resp or parsed.code or parsed.error_code
    ):
        (choice,) = parsed.choices
        delta = choice.delta
        calls = delta.tool_calls or delta.function_call
        # True for nearly all chunks. A delta without these fields may have one that is not listed here, such as audio.
        if (
            (delta.content or delta.reasoning_content or delta.reasoning or delta.refusal or calls)
            and choice.finish_reason is None
            and choice.message is None
            and choice.error is None
            and delta.error is None
            and 0 <= choice.index < INDEX_LIMIT
            and (delta.content is None or delta.content.__class__ is str)
            and not (calls and _has_unusual_calls(delta.tool_calls, payload))
        ):
            return Chunk(CHUNK, payload, 1, (), None)
    return _decode_slowly(payload, event, streamed)


def _has_unusual_calls(calls: object, payload: bytes) -> bool:
    if calls is not None and not (
        isinstance(calls, list) and all(isinstance(call, dict) for call in cast("list[object]", calls))
    ):
        return True
    return _ARGUMENTS_OBJECT.search(payload) is not None


# --- the slow path: the first and last chunks of a stream, and chunks of unusual form ---------------------------------

_DIGITS_LIMIT = 4300  # digits of a number that Python's parser accepts (sys.set_int_max_str_digits)
_ARGUMENTS_OBJECT = re.compile(rb'"arguments"\s*:\s*[{\[]')
_MANY_DIGITS = re.compile(rb"\d{%d}" % _DIGITS_LIMIT)
_KEEP_ALIVE_TYPES = frozenset({"ping", "pong", "keep-alive", "keepalive", "heartbeat"})
"""Values of `type` that mark an object as a keep-alive."""
_KEEP_ALIVES = frozenset(word.encode() for word in _KEEP_ALIVE_TYPES)
"""The same words as the complete data of an event."""
_ENVELOPE = frozenset({"id", "object", "created", "model", "choices", "usage", "system_fingerprint", "service_tier"})


def _decode_slowly(payload: bytes, event: bytes, streamed: bool) -> Chunk | UnknownObject | None:
    value = _parse(payload, event)
    wrapped = isinstance(value, list)
    if wrapped:  # Gemini wraps its errors in a list
        listed = [one for one in cast("list[object]", value) if one is not None]
        if len(listed) > 1 and not any(is_error(get_field(one, "error")) for one in listed):
            raise InvalidChunk("a JSON array")
        value = listed[0] if listed else None
    if event in ERROR_EVENTS and not isinstance(value, dict):
        return Chunk(CHUNK, b"", 0, (), {"message": value if isinstance(value, str) else ""}, has_choices=False)
    if isinstance(value, str) and value.strip():
        return UnknownObject({"message": value})
    if not isinstance(value, dict):
        return None
    fields = cast(Json, value)
    try:
        choices, whole = normalize_choices(fields, streamed=streamed)
    except ValueError:
        raise InvalidChunk("number out of range") from None
    error = reported_error(fields, choices, event)
    if not choices:
        return _without_choices(payload, fields, error, plain=fields.get("choices") == [] and not wrapped)
    stored = _normalize(fields, choices)
    data = payload if stored is fields and not wrapped else _encode(stored)
    tokens = max([_tokens_of(choice["delta"]) for choice in choices])
    finished = tuple([choice["index"] for choice in choices if finish_reason(choice.get("finish_reason"))])
    return Chunk(CHUNK, data, tokens, finished, error, is_message=whole)


def _normalize(fields: Json, choices: list[Json]) -> Json:
    """Return the chunk with these choices: the same object if they are its own and nothing else is unusual."""
    given = fields.get("choices")
    same = isinstance(given, list) and list(map(id, cast("list[object]", given))) == list(map(id, choices))
    changes: Json = {} if same else {"choices": choices}
    if not same and fields.get("object") == "chat.completion":
        changes["object"] = "chat.completion.chunk"
    if not isinstance(fields.get("usage"), dict):  # where Groq and Moonshot put it
        places = [get_field(fields, "x_groq"), *choices]
        reported: list[Any] = [one for one in (get_field(place, "usage") for place in places) if isinstance(one, dict)]
        if reported:
            changes["usage"] = reported[0]
    kept = {key: value for key, value in fields.items() if key not in ("error", "errors") or not value}
    if len(kept) < len(fields):  # an `error` that reports success: SDKs would raise on it
        return {**kept, **changes}
    return {**fields, **changes} if changes else fields


def _without_choices(payload: bytes, fields: Json, error: object, *, plain: bool) -> Chunk | UnknownObject | None:
    """`plain`: `choices` is an empty list, as in a usage chunk of OpenAI's and in Azure's first chunk."""
    if error is not None:
        return Chunk(CHUNK, b"", 0, (), error, has_choices=False)
    if isinstance(fields.get("usage"), dict):
        data = payload if plain else _encode({**fields, "choices": []})
        return Chunk(USAGE, data, 0, (), None, has_choices=False)
    if plain:
        return Chunk(CHUNK, payload, 0, (), None, has_choices=False) if fields.keys() - _ENVELOPE else None
    kind = fields.get("type")
    if not fields or (isinstance(kind, str) and kind.lower() in _KEEP_ALIVE_TYPES):
        return None
    codes = error_codes(fields)
    return None if codes and all(map(is_success, codes)) else UnknownObject(fields)


def _parse(payload: bytes, event: bytes) -> object:
    """Parse with Python's own parser: msgspec rejects half a surrogate pair, and some upstreams split a pair over two
    chunks. NaN is rejected: Python accepts it, JavaScript does not. A blank payload is None."""
    text = payload.strip()
    if not text or text.lower() in _KEEP_ALIVES:
        return None
    try:
        return json.loads(payload.decode(), parse_constant=_refuse_constant)  # json.loads guesses the encoding of bytes
    except (ValueError, RecursionError):
        if event in ERROR_EVENTS:
            return payload.decode()
        raise InvalidChunk("invalid JSON") from None


def _refuse_constant(name: str) -> object:
    raise ValueError(name)


def _encode(value: object) -> bytes:
    """Raises InvalidChunk for a number that is out of a float's range."""
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    except ValueError:
        raise InvalidChunk("number out of range") from None


_NAMES = frozenset({"role", "id", "index", "type", "name", "object", "finish_reason"})


def _tokens_of(delta: Json) -> int:
    return int(any(value for key, value in delta.items() if key not in _NAMES))
