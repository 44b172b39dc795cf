"""The oracle has no complaint about a correct stream, and the expected complaint about each faulty stream."""

from __future__ import annotations

import json

import pytest

from tests.faults.oracle import Said, Shown, ShownCompletion
from tests.support import Frame
from worker.simulator.text import pieces

SAID = Said("gen_x", seed=7, length=4)
WORDS = pieces(7, 4)


def chunk(seq: int, attempt: int = 5, call: str = "a", text: str | None = None) -> tuple[str, str, object]:
    said = WORDS[seq - 1] if text is None else text
    return f"{attempt}-{seq}", "chunk", {"id": call, "choices": [{"index": 0, "delta": {"content": said}}]}


CREATED = ("0-1", "created", {})
STARTED = ("5-0", "started", {"attempt": 1})
RESET = ("9-0", "reset", {"attempt": 2, "reason": "worker_lost"})
DONE = ("5-5", "completed", {"finish_reason": "stop"})
WHOLE = [CREATED, STARTED, *(chunk(seq) for seq in (1, 2, 3, 4)), DONE]


def fold(events: list[tuple[str, str, object]]) -> Shown:
    shown = Shown(SAID)
    for cursor, event, data in events:
        shown.take(Frame(b"", cursor, event, json.dumps(data)))
    return shown


def complaints_of(shown: Shown | ShownCompletion) -> list[str]:
    return [wrong for wrong, _ in shown.complaints]


CORRECT = {
    "whole": WHOLE,
    "a reset discards the text": [
        CREATED,
        STARTED,
        chunk(1),
        RESET,
        *(chunk(s, 9, "b") for s in (1, 2, 3, 4)),
        ("9-5", *DONE[1:]),
    ],
    "a gateway that discards the text and sends all again": [
        CREATED,
        STARTED,
        chunk(1),
        ("0-0", "reset", {"attempt": 1}),
        *WHOLE,
    ],
    "cancelled by a caller": [CREATED, STARTED, chunk(1), ("8-0", "cancelled", {})],
    "deleted": [CREATED, STARTED, chunk(1), ("8-0", "gone", {})],
    "an announced gap": [
        CREATED,
        ("5-2", "gap", {"requested": "0-1", "earliest": "5-3", "latest": "5-4"}),
        chunk(3),
        chunk(4),
        DONE,
    ],
}
FAULTY = {
    "a chunk is missing": ([CREATED, STARTED, chunk(1), chunk(3, text=WORDS[1])], "gap"),
    "the beginning is missing": ([CREATED, chunk(1)], "gap"),
    "a chunk is repeated": ([CREATED, STARTED, chunk(1), chunk(1)], "duplicate"),
    "an older attempt continues": ([CREATED, STARTED, RESET, chunk(1)], "mixed"),
    "two calls in one attempt": ([CREATED, STARTED, chunk(1), chunk(2, call="b")], "mixed"),
    "other text": ([CREATED, STARTED, chunk(1, text="something else")], "mixed"),
    "an attempt without a reset": ([CREATED, STARTED, chunk(1), ("9-0", "started", {"attempt": 2})], "mixed"),
    "the end is missing": ([*WHOLE[:-2], ("5-4", *DONE[1:])], "gap"),
    "two endings": ([*WHOLE, ("8-0", "cancelled", {})], "ending"),
    "an unknown event": ([CREATED, STARTED, ("5-1", "token", {})], "malformed"),
}


@pytest.mark.parametrize("events", CORRECT.values(), ids=CORRECT.keys())
def test_a_correct_stream_has_no_complaint(events: list[tuple[str, str, object]]) -> None:
    shown = fold(events)
    assert shown.complaints == []
    assert shown.ending == events[-1][1]


@pytest.mark.parametrize(("events", "wrong"), FAULTY.values(), ids=FAULTY.keys())
def test_a_faulty_stream_has_its_complaint(events: list[tuple[str, str, object]], wrong: str) -> None:
    assert wrong in complaints_of(fold(events))


def completion(*frames: tuple[str | None, object]) -> ShownCompletion:
    shown = ShownCompletion(SAID)
    for cursor, data in frames:
        shown.take(Frame(b"", cursor, None, data if isinstance(data, str) else json.dumps(data)))
    return shown


def plain(seq: int, attempt: int = 5, call: str = "a") -> tuple[str, object]:
    cursor, _, data = chunk(seq, attempt, call)
    return cursor, data


def test_a_complete_chat_stream_has_no_complaint() -> None:
    shown = completion(*(plain(seq) for seq in (1, 2, 3, 4)), ("5-5", "[DONE]"))
    assert (shown.complaints, shown.ending) == ([], "completed")


@pytest.mark.parametrize(
    ("frames", "wrong"),
    [
        ([plain(1), ("5-2", "[DONE]")], "gap"),
        ([plain(1), plain(1)], "duplicate"),
        ([plain(1), plain(3)], "mixed"),
        ([plain(1), plain(2, attempt=9)], "mixed"),
        ([plain(1), plain(2, call="b")], "mixed"),
        ([(None, plain(1)[1])], "malformed"),
        ([*(plain(seq) for seq in (1, 2, 3, 4)), ("5-5", "[DONE]"), ("5-5", "[DONE]")], "ending"),
    ],
)
def test_a_faulty_chat_stream_has_its_complaint(frames: list[tuple[str | None, object]], wrong: str) -> None:
    assert wrong in complaints_of(completion(*frames))
