"""The nesting limit of JSON, for requests and for the chunks of an upstream.

Python's parsers and encoders are recursive: above 500 to 1,000 levels, depending on the current stack, each raises
RecursionError at a different depth. With a limit far below, everything that is accepted can be merged, stored and read.
"""

from __future__ import annotations

import re
from typing import Any

MAX_DEPTH = 100
"""Maximum levels of arrays and objects. The deepest JSON Schema of a tool that OpenAI accepts has 10."""

_TOKENS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*("?)|[\[{]|[\]}]', re.DOTALL)

_NESTING = (dict, list)  # a tuple: isinstance takes three times as long for `dict | list`


def is_too_deep(text: bytes) -> bool:
    """Return whether a JSON text has more than MAX_DEPTH levels. The text can be invalid JSON."""
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
            case _ if not token[1]:  # an unterminated string, so not JSON: assume the worst
                return True
            case _:
                pass
    return False


def is_nested_too_deeply(value: Any) -> bool:
    """Return whether a decoded JSON value has more than MAX_DEPTH levels. Visits it level by level: for a large request
    that takes a tenth of the time of scanning its text."""
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
