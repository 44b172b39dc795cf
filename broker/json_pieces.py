"""Decoding and encoding of JSON of many megabytes, in pieces.

A worker thread keeps the event loop responsive only if the work consists of short calls: msgspec and `json` both hold
the interpreter's lock until a call is done, which takes 20 to 300 ms for a body of 20 MB.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import msgspec

PIECE = 1024 * 1024
"""Size from which a text is split: bytes of JSON, or characters of a string. Decoding one piece takes at most 8 ms."""
_ITEMS = 64
"""Maximum number of items of an array or object that are encoded one by one; a longer array is encoded in this number
of runs."""
_SPARSE = 12
"""Minimum bytes per comma for a text to be split: each piece costs 64 bytes, and numbers are much shorter."""
_LEVELS = 6
"""Number of levels of arrays and objects that are split: body, messages, message, content, part, image."""

dump_whole = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
"""Return a value's compact JSON with sorted keys, in ASCII."""


def decode(text: bytes, levels: int = _LEVELS) -> Any:
    """Decode a JSON text. Raises the same exceptions as `msgspec.json.decode`."""
    if len(text) <= PIECE or not levels or len(text) < _SPARSE * text.count(b","):
        return msgspec.json.decode(text)
    match text[:64].lstrip()[:1]:
        case b"{":
            values = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
            return {key: decode(bytes(value), levels - 1) for key, value in values.items()}
        case b"[":
            return [decode(bytes(item), levels - 1) for item in msgspec.json.decode(text, type=list[msgspec.Raw])]
        case _:
            return msgspec.json.decode(text)


def dump(value: object, levels: int = _LEVELS) -> Iterator[str]:
    """Yield the same JSON as `dump_whole`, in pieces."""
    if isinstance(value, str) and len(value) > PIECE:
        yield '"'
        for start in range(0, len(value), PIECE):
            yield dump_whole(value[start : start + PIECE])[1:-1]
        yield '"'
    elif levels and isinstance(value, dict) and 0 < len(fields := cast("dict[str, object]", value)) <= _ITEMS:
        opening = "{"
        for key in sorted(fields):
            yield f"{opening}{dump_whole(key)}:"
            yield from dump(fields[key], levels - 1)
            opening = ","
        yield "}"
    elif levels and isinstance(value, list) and value:
        items = cast("list[object]", value)
        opening = "["
        for run in _runs(items):
            yield opening
            yield from dump(run[0], levels - 1) if len(run) == 1 else (dump_whole(run)[1:-1],)
            opening = ","
        yield "]"
    else:
        yield dump_whole(value)


def _runs(items: list[object]) -> Iterator[list[object]]:
    length = len(items) // _ITEMS + 1
    return (items[start : start + length] for start in range(0, len(items), length))
