"""Finds what a text repeats of the end of another one: models often repeat the last words before they go on."""

from __future__ import annotations

WINDOW = 200
"""Maximum characters of a repeated end."""
SHORTEST = 16
"""Minimum characters of a repeated end. Shorter repetitions belong to ordinary text: line breaks, indentation, rules of
tables, refrains ("no, no"). Removing one that belongs there falsifies the text; keeping a repeated word is only untidy.
So three or four words must agree before anything is removed."""
SHORTEST_WHOLE = 2
"""Minimum characters of a repetition of the whole text so far. It is usually a reply that begins again, and seldom the
text that follows: "Sure" and "Sure, here", "1." and "1. First" or "1.5 m". "ha" and "ha ha" can be either; removed by
mistake, it costs a syllable. One character, marks without a word ("- ") and the digits of a number ("20", then "20" for
"2020") are kept: they often follow themselves, and a lost digit falsifies the text."""


class Overlap:
    """Compares the start of new text with `text`, which it follows. The new text may repeat the end of `text`, from
    SHORTEST to WINDOW characters, or all of it, also if it is longer, or shorter but has a word. `repeats_all`: the
    upstream may be one that repeats what it is given, as Mistral's does, so all of `text` counts whatever it is."""

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
                enough = length >= SHORTEST or (length == len(text) and self._has_word())
                return length if enough and not self._is_pattern(text[-length:]) else 0
        return 0

    def _has_word(self) -> bool:
        """Return whether the text has a word, or a number that is complete, and not only digits or marks."""
        text = self._text
        return len(text) >= SHORTEST_WHOLE and any(map(str.isalnum, text)) and not text.isdigit()

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
