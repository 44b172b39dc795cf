"""Format JSON text over several lines without parsing it: only line breaks and indents are added."""

from __future__ import annotations

from collections.abc import Iterator

WIDTH = 118
_CLOSING = {"{": "}", "[": "]"}


def laid_out(text: str, indent: str = "") -> str:
    """Return the text with each long object and array on several lines, or on one line if it fits."""
    if len(indent) + len(text) <= WIDTH or text[:1] not in _CLOSING or text[-1:] != _CLOSING[text[0]]:
        return text
    inner = indent + "  "
    items = [laid_out_item(item, inner) for item in _items(text[1:-1])]
    return text[0] + "\n" + "\n".join(inner + item for item in items) + "\n" + indent + text[-1]


def laid_out_item(item: str, indent: str) -> str:
    """Format an array's item, or an object's name and value, with the comma that follows it."""
    comma = "," if item.endswith(",") else ""
    body = item.removesuffix(",")
    start = next((at for at, _ in _outside_strings(body) if body[at] in _CLOSING), None)
    return item if start is None else body[:start] + laid_out(body[start:], indent) + comma


def _items(text: str) -> Iterator[str]:
    depth, begin = 0, 0
    for at, character in _outside_strings(text):
        depth += (character in "{[") - (character in "}]")
        if character == "," and depth == 0:
            yield text[begin : at + 1]
            begin = at + 1
    if text[begin:]:
        yield text[begin:]


def _outside_strings(text: str) -> Iterator[tuple[int, str]]:
    quoted = escaped = False
    for at, character in enumerate(text):
        if quoted:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                quoted = False
        elif character == '"':
            quoted = True
        else:
            yield at, character
