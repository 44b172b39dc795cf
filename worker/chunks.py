"""One upstream payload, checked once and made safe for an SSE `data:` line; nobody looks inside it again.

Verbatim but for raw line breaks between tokens: those would let an upstream forge frames, and become spaces.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple, cast

import msgspec

from broker.events import CHUNK, USAGE


class Chunk(NamedTuple):
    """What the log and the counting need of a payload. `data` is valid UTF-8 and JSON, on one line."""

    type: bytes
    data: bytes
    tokens: int
    """1 if it holds content, reasoning, refusal or tool calls: what is counted where an upstream tells no usage."""
    finished: tuple[int, ...]
    """Indexes of the choices that end here."""
    error: object
    """The upstream's `error`, if that is what it sent instead of a chunk."""


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
    index: int = 0
    delta: _Delta | None = None
    finish_reason: Any = None


class _Payload(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None


_decode = msgspec.json.Decoder(_Payload).decode


def examine(payload: bytes) -> Chunk:
    """BadChunk unless it is a JSON object in valid UTF-8."""
    if b"\n" in payload or b"\r" in payload:
        payload = payload.replace(b"\n", b" ").replace(b"\r", b" ")
    # msgspec skips what it does not decode, invalid UTF-8 included, and readers' parsers would die of it.
    if not payload.isascii():
        try:
            payload.decode()
        except UnicodeDecodeError:
            raise BadChunk("invalid UTF-8") from None
    try:
        parsed = _decode(payload)
    except (msgspec.DecodeError, RecursionError):
        parsed = _parse_slowly(payload)
    choices = parsed.choices
    if not choices:
        kind = USAGE if choices is not None and isinstance(parsed.usage, dict) else CHUNK
        return Chunk(kind, payload, 0, (), parsed.error or None)
    if len(choices) == 1:  # nearly always
        choice = choices[0]
        finished = () if choice.finish_reason is None else (choice.index,)
        return Chunk(CHUNK, payload, _holds_tokens(choice.delta), finished, parsed.error or None)
    tokens = max([_holds_tokens(choice.delta) for choice in choices])
    finished = tuple([choice.index for choice in choices if choice.finish_reason is not None])
    return Chunk(CHUNK, payload, tokens, finished, parsed.error or None)


def _holds_tokens(delta: _Delta | None) -> int:
    if delta is None:
        return 0
    return (
        1
        if delta.content
        or delta.reasoning_content
        or delta.reasoning
        or delta.tool_calls
        or delta.refusal
        or delta.function_call
        else 0
    )


def _parse_slowly(payload: bytes) -> _Payload:
    """For what msgspec refuses and the world sends: half a surrogate pair, fields of unexpected types. Not NaN,
    which json takes and JavaScript does not."""
    try:
        value = json.loads(payload, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise BadChunk("invalid JSON") from None
    if not isinstance(value, dict):
        raise BadChunk("not an object")
    fields = cast("dict[str, Any]", value)
    choices = fields.get("choices")
    listed = [_choice(choice) for choice in cast("list[object]", choices)] if isinstance(choices, list) else None
    return _Payload(listed, fields.get("usage"), fields.get("error"))


def _choice(choice: object) -> _Choice:
    fields, index = _fields(choice), _fields(choice).get("index")
    delta = _fields(fields.get("delta"))
    known = {name: delta.get(name) for name in _Delta.__struct_fields__}
    return _Choice(index if isinstance(index, int) else 0, _Delta(**known), fields.get("finish_reason"))


def _fields(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _refuse_constant(name: str) -> object:
    raise ValueError(name)
