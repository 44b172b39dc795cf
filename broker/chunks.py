"""Reading single chunks of a chat completion: their JSON, the indexes of their choices, and their text."""

from __future__ import annotations

import json
import re
from typing import Any, cast

import msgspec

from broker.json_depth import is_too_deep

Json = dict[str, Any]

INDEXES = range(1 << 31)
"""Valid values of an `index`."""

_INDEX_TEXT = re.compile(r"[0-9]{1,10}(\.0)?")
_TEXT_PARTS = (None, "text", "output_text")
_DIGITS = 300
"""Maximum digits of an integer, as in the largest float. Encoders and parsers refuse longer ones, each at a different
length."""


def decode_chunk(data: bytes) -> Json:
    """Return a chunk's JSON; {} if it is not an object, not JSON, or nested more deeply than the worker accepts.

    msgspec is six times faster than json, but refuses a lone surrogate: some upstreams split surrogate pairs over two
    chunks.
    """
    if is_too_deep(data):
        return {}
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.DecodeError:
        return _decode_with_json(data)


def _decode_with_json(data: bytes) -> Json:
    try:
        chunk = json.loads(data, parse_int=_integer)
    except ValueError:
        return {}
    return cast(Json, chunk) if isinstance(chunk, dict) else {}


def _integer(digits: str) -> int | None:
    return int(digits) if len(digits) <= _DIGITS else None


def indexed_choices(choices: object) -> list[tuple[int, Json]]:
    """Return the choices of a chunk with their indexes; without a valid index, a choice has its position."""
    indexed: list[tuple[int, Json]] = []
    for position, choice in enumerate(dicts_in(choices)):
        index = index_of(choice)
        indexed.append((position if index is None else index, choice))
    return indexed


def dicts_in(value: object) -> list[Json]:
    """Return the objects in a list; none for other values."""
    items = cast("list[object]", value) if isinstance(value, list) else []
    return [cast(Json, item) for item in items if isinstance(item, dict)]


def index_of(fields: Json) -> int | None:
    """Return the `index` as an integer; None if it is absent or invalid."""
    return as_index(fields.get("index"))


def as_index(value: object) -> int | None:
    """Return a value as an index; None if it is not a valid one."""
    if isinstance(value, str) and _INDEX_TEXT.fullmatch(value):
        value = float(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value in INDEXES else None


def text_of_chunk(chunk: object) -> str:
    """Return the text that a chunk adds to choice 0."""
    text = ""
    for index, choice in indexed_choices(cast(Json, chunk).get("choices")) if isinstance(chunk, dict) else ():
        if index == 0:
            source = choice.get("delta") or choice.get("message")
            text += text_of_content(cast(Json, source).get("content")) if isinstance(source, dict) else ""
    return text


def text_of_content(content: object) -> str:
    """Return the text of a `content`: a string or a list of typed parts. Reasoning and images are not text."""
    if isinstance(content, str):
        return content
    if isinstance(content, int | float) and not isinstance(content, bool):
        return json.dumps(content)
    parts = cast("list[object]", content) if isinstance(content, list) else [content]  # some send no list
    return "".join([_text_of_part(part) for part in parts])


def _text_of_part(part: object) -> str:
    if isinstance(part, dict) and cast(Json, part).get("type") in _TEXT_PARTS:
        return text_of_content(cast(Json, part).get("text"))
    return part if isinstance(part, str) else ""
