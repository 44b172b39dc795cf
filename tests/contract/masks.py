"""Masks: replace values that differ between runs, and human-readable text, with words in angle brackets.

Everything else is compared exactly: names, values, order, white space, the bytes of event streams.

    <gen 1>, <gen cancelled>   generation ids, numbered by first appearance, or with the name given by an area
    <attempt 1>                attempts (16 digits), so that a cursor reads `<attempt 1>-7`
    <time>, <unix>, <ms>       moments: seconds with a fraction, whole seconds, milliseconds
    <text>                     wording: error messages, comments on event streams
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode
from collections.abc import Callable

Replacement = str | Callable[[re.Match[str]], str]


def _vector(found: re.Match[str]) -> str:
    """Decode an id of a multiplexed stream: show its cursors, without the checksum of the URL."""
    try:
        text = urlsafe_b64decode(found[2] + "=" * (-len(found[2]) % 4)).decode()
    except ValueError:
        return found[0]
    return f"{found[1]}<vector {text[9:]}>" if re.fullmatch(r"[0-9a-f]{8} [\d,g-]+", text) else found[0]


_PATTERNS: tuple[tuple[str, Replacement], ...] = (
    (r"\breq_[0-9a-f]{24}\b", "<request>"),
    (r'(?<="token":")[^"]+', "<token>"),
    (r"(?<=[?&]token=)[\w.~-]+", "<token>"),
    (r"\bchatcmpl-\d+", "chatcmpl-<number>"),
    (r'(?<="at":)\d+(?=,"data":)', "<n>"),
    (r"\btck_[\w-]+", "<key>"),
    (r'("message": ?")(?:[^"\\]|\\.)*(?=")', r"\1<text>"),
    (r"(?m)^((?:> last-event-)?id: )([\w-]{10,})$", _vector),
    (r"(?m)^: (?!hb$).+$", ": <text>"),
    (r"(?m)^retry: \d+$", "retry: <ms>"),
    (r"(?:127\.0\.0\.1|localhost):\d+", "<host>"),
    (r"(?<![\w.])[12]\d{9}\.\d+(?![\w.])", "<time>"),
    (r"(?<![\w.-])[12]\d{9}(?![\w.-])", "<unix>"),
    (r"(?<![\w.-])[12]\d{12}(?![\w-])", "<ms>"),
)
_ID = re.compile(r"gen_[0-9a-z]{34}")
_ATTEMPT = re.compile(r"(?<!\d)\d{16}(?!\d)")


class Masks:
    """The masks of one golden file."""

    def __init__(self) -> None:
        self._ids: dict[str, str] = {}
        self._attempts: dict[str, str] = {}

    def name(self, gid: str, name: str) -> None:
        """Show a generation's id as `<gen name>`."""
        self._ids[gid] = f"<gen {name}>"

    def apply(self, text: str) -> str:
        for pattern, replacement in _PATTERNS:
            text = re.sub(pattern, replacement, text)
        text = _ID.sub(lambda found: self._ids.setdefault(found[0], f"<gen {len(self._ids) + 1}>"), text)
        number = self._attempts
        return _ATTEMPT.sub(lambda found: number.setdefault(found[0], f"<attempt {len(number) + 1}>"), text)
