"""How deeply JSON may be nested, for requests and for an upstream's chunks alike.

Python's own parsers and encoders recurse: above some 500 to 1,000 levels, depending on what is on the stack already,
each of them raises RecursionError at another depth. A limit far below all of them makes "accepted" mean "can be merged,
stored and read".
"""

from __future__ import annotations

import re
from typing import Any

MAX_DEPTH = 100
"""Levels of arrays and objects. The deepest JSON Schema of a tool that OpenAI accepts has 10."""

_TOKENS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*("?)|[\[{]|[\]}]', re.DOTALL)

_NESTING = (dict, list)  # a tuple: isinstance takes three times as long for `dict | list`


def is_too_deep(text: bytes) -> bool:
    """Return whether a JSON text has more than MAX_DEPTH levels. Need not be valid JSON."""
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:  # nearly always: 0.1 µs for a chunk
        return False
    depth = 0
    for token in _TOKENS.finditer(text):
        match text[token.start()]:
            case 0x5B | 0x7B:
                depth += 1
                if depth > MAX_DEPTH:
                    return True
            case 0x5D | 0x7D:
                depth -= 1
            case _ if not token[1]:  # a string without an end, so not JSON: as deep as its brackets could make it
                return True
            case _:
                pass
    return False


def is_nested_too_deeply(value: Any) -> bool:
    """Return whether a decoded JSON value has more than MAX_DEPTH levels. Goes through it level by level: of a large
    request, that takes a tenth of the time that its text does."""
    level: list[Any] = [value] if isinstance(value, _NESTING) else []
    for _ in range(MAX_DEPTH):
        level = [
            child  # pyright: ignore[reportUnknownVariableType]
            for part in level
            for child in (part.values() if isinstance(part, dict) else part)  # pyright: ignore
            if isinstance(child, _NESTING)
        ]
        if not level:
            return False
    return True
