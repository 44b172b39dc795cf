"""The preview of a prompt: one short line, by which people recognise a generation in a list."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

MAX_PREVIEW = 120  # characters
_LOOKED_AT = 4096
"""Characters of a message in which its first line is searched."""
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")
"""Control characters, and those that change the direction of the text around them."""


def preview_of(messages: Sequence[object]) -> str:
    """Return the first line of the last user message that has text, shortened to MAX_PREVIEW; "" if there is none."""
    for message in reversed(messages):
        fields = cast(dict[str, Any], message)
        if fields.get("role") == "user" and (line := _first_line(_text_of(fields.get("content")))):
            return line if len(line) <= MAX_PREVIEW else line[: MAX_PREVIEW - 1].rstrip() + "…"
    return ""


def _text_of(content: object) -> str:
    """Return the beginning of a message's text. `content`: a text, a part, or a list of parts."""
    if isinstance(content, str):
        return content[:_LOOKED_AT]
    parts = cast("list[object]", content if isinstance(content, list) else [content])
    texts = [cast(dict[str, Any], part).get("text") for part in parts if isinstance(part, dict)]
    return next((text[:_LOOKED_AT] for text in texts if isinstance(text, str) and text.strip()), "")


def _first_line(text: str) -> str:
    for line in text.splitlines():
        if cleaned := " ".join(_UNSEEN.sub(" ", line).split()):
            return cleaned
    return ""
