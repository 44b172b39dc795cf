"""What of a new text repeats the end of the text before it."""

from __future__ import annotations

import pytest

from worker.continuation.overlap import SHORTEST, WINDOW, Overlap
from worker.simulator.text import pieces

TEXT = "".join(pieces(7, 200))


def repeated(text: str, new: str, size: int = 3, *, repeats_all: bool = False) -> int:
    """The number of characters, with the new text in pieces of `size`."""
    overlap = Overlap(text, repeats_all=repeats_all)
    for at in range(0, len(new), size):
        if (found := overlap.add(new[at : at + size])) is not None:
            return found
    return overlap.result()


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("length", [0, SHORTEST, 50, WINDOW])
def test_a_repeated_end_is_found_whatever_the_pieces(size: int, length: int) -> None:
    for cut in range(300, 400):
        text, rest = TEXT[:cut], TEXT[cut : cut + 60]
        end = text[len(text) - length :]
        assert repeated(text, end + rest, size) == length


def test_a_short_repetition_is_kept() -> None:
    assert repeated("no, no, ", "no, no, no") == 0
    assert repeated("first line\n", "\nsecond line") == 0
    assert repeated("if x:\n        ", "        return x") == 0
    end = TEXT[:300][1 - SHORTEST :]
    assert repeated(TEXT[:300], end + "something else") == 0


@pytest.mark.parametrize(
    ("text", "new"),
    [
        ("| a | b | c | d | e |\n| --- | --- | --- | --- ", "| --- | --- | --- |\n| 1"),
        ("=" * 40, "=" * 40),
        ("row, row, row, row, row, row, ", "row, row, row, row your boat"),
        ("0.25, 0.50, 0.75,\n0.25, 0.50, 0.75,\n", "0.25, 0.50, 0.75,\n1"),
    ],
)
def test_a_pattern_of_the_text_goes_on(text: str, new: str) -> None:
    assert repeated(text, new) == 0


def test_an_end_longer_than_the_window_is_no_repetition_unless_it_is_all() -> None:
    text = TEXT[:600]
    assert repeated(text, text[-WINDOW - 20 :] + " and so on") == 0
    assert repeated(text, text + " and so on") == len(text)


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(
    ("text", "new"),
    [
        ("Sure", "Sure, here"),
        ("1.", "1. First"),
        ("1.", "1.5"),
        ("ha", "ha ha"),
        ("Step 1", "Step 1:"),
        ("你好", "你好,"),
    ],
)
def test_all_of_a_short_text_is_removed(text: str, new: str, size: int) -> None:
    assert repeated(text, new, size) == len(text)


@pytest.mark.parametrize(
    ("text", "new"),
    [
        ("I", "I see"),
        ("1", "11"),
        ("20", "20"),
        ("٢٠", "٢٠"),
        ("\n\n", "\n\n\n"),
        ("- ", "- - -"),
        ("no, no, ", "no, no, no"),
    ],
)
def test_all_of_a_short_text_that_may_go_on_alike_is_kept(text: str, new: str) -> None:
    """One character, the digits of a number, marks without a word, a refrain."""
    assert repeated(text, new) == 0
    assert repeated(text, new, repeats_all=True) == len(text)


def test_text_is_held_back_only_while_it_may_be_a_repetition() -> None:
    overlap = Overlap("The quiet river greets the sea")
    assert overlap.add("The") is None
    assert overlap.add(" quiet") is None
    assert overlap.add(" and") == 0
    assert Overlap("The quiet river greets the sea").add("xyz") == 0


def test_a_repetition_that_the_text_ends_with_is_complete() -> None:
    overlap = Overlap(TEXT[:300])
    assert overlap.add(TEXT[260:299]) is None
    assert overlap.result() == 0
    assert overlap.add(TEXT[299:300]) == 40
