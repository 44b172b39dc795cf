"""Finds what a text repeats of the end of another one: models often repeat the last words before they go on."""

from __future__ import annotations

WINDOW = 200
"""Maximum characters of a repeated end."""
SHORTEST = 16
"""Minimum characters of a repeated end. Shorter repetitions belong to ordinary text: line breaks, indentation, rules of
tables, refrains ("no, no"). Removing one that belongs there falsifies the text; keeping a repeated word is only untidy.
So three or four words must agree before anything is removed."""


class Overlap:
    """Compares the start of new text with `text`, which it follows. The new text may repeat the end of `text`, up to
    WINDOW characters, or all of it, whatever its length. `repeats_all`: the upstream may be one that repeats what it is
    given, as Mistral's does, so all of `text` counts even if it is shorter than SHORTEST."""

    def __init__(self, text: str, *, repeats_all: bool = False) -> None:
        self._text = text
        self._tail = text[-WINDOW:]
        self._repeats_all = repeats_all
        self._received = ""

    def add(self, new: str) -> int | None:
        """Add new text. Return the number of its first characters that are a repetition, counted from the first call;
        None while more text may change the number."""
        self._received += new
        return None if self._may_be_longer() else self.result()

    def result(self) -> int:
        """Return the number of repeated characters, as far as text has arrived."""
        text, received = self._text, self._received
        if self._repeats_all and received.startswith(text):
            return len(text)
        ends = [len(text)] if received.startswith(text) else []
        for length in [*ends, *range(min(len(self._tail), len(received)), 0, -1)]:
            if received.startswith(text[-length:]):
                return 0 if length < SHORTEST or self._is_pattern(text[-length:]) else length
        return 0

    def _may_be_longer(self) -> bool:
        received = self._received
        if len(received) < len(self._text) and self._text.startswith(received):
            return True
        return received in self._tail[:-1]  # the start of one of the ends that are longer than it

    def _is_pattern(self, end: str) -> bool:
        """Return whether the text repeats itself at its end, as a table or a refrain does. The new text then goes on
        with the pattern."""
        periods = range(1, min(len(end), WINDOW) // 2 + 1)
        return any(end[period:] == end[:-period] for period in periods) or self._text[: -len(end)].endswith(end)
