"""The table of `top`: its content, and that no text leaves its cell."""

from __future__ import annotations

from typing import Any

import pytest

from broker.cli.top import table as board
from broker.cli.top.table import TopTable, cells_wide, pad


def generation(number: int, status: str = "completed", cursor: str = "7-3", **more: Any) -> dict[str, Any]:
    ended = 1000.0 + number if status in ("completed", "failed", "cancelled") else None
    known = {
        "model": "m",
        "created_at": 990.0,
        "started_at": 991.0,
        "first_token_at": 991.5,
        "attempt": 1,
        "usage": None,
        "error": None,
        "queue": None,
    }
    return {"id": f"gen_{number:034}", "status": status, "cursor": cursor, "ended_at": ended, **known, **more}


def ids(shown: TopTable, status: str | None = None) -> list[int]:
    return [int(one["id"][4:]) for one in shown.rows(status)]


def test_running_generations_come_first_followed_by_the_newest() -> None:
    shown = TopTable()
    for number, status in enumerate(("completed", "queued", "in_progress", "failed", "in_progress")):
        shown.update(generation(number, status, created_at=float(number)))
    assert ids(shown) == [4, 2, 1, 3, 0]
    assert ids(shown, "in_progress") == [4, 2]


def test_an_outdated_event_changes_nothing() -> None:
    shown = TopTable()
    for status, cursor in (("in_progress", "7-3"), ("completed", "7-12"), ("in_progress", "7-9"), ("queued", "0-1")):
        shown.update(generation(1, status, cursor))
    assert [one["status"] for one in shown.rows(None)] == ["completed"]


def test_running_generations_and_the_newest_others_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "KEPT", 3)
    shown = TopTable()
    shown.update(generation(0, "in_progress"))
    for number in range(1, 7):
        shown.update(generation(number))
    assert ids(shown) == [0, 6, 5, 4]


def test_the_counters_of_the_gateway_take_precedence() -> None:
    shown = TopTable()
    shown.update(generation(1))
    assert shown.summary() == "0 queued  0 in_progress  1 completed  0 failed  0 cancelled"
    shown.overview = {
        "generations": {"queued": 7, "in_progress": 2, "completed": 50, "failed": 0, "cancelled": 1},
        "queue": {"depth": 7, "oldest_seconds": 65.0},
        "workers": [{"slots": 100, "running": 2}, {"slots": 50, "running": 0}],
    }
    counted = "7 queued  2 in_progress  50 completed  0 failed  1 cancelled"
    assert shown.summary() == f"{counted}  queue 7, 1m  2 workers, 2/150 slots"


def test_a_row_shows_progress_and_speed() -> None:
    shown = TopTable()
    running = generation(1, "in_progress", "7-30")
    ended = generation(2, usage={"completion_tokens": 21, "estimated": True})
    waiting = generation(3, "queued", "0-1", attempt=0, started_at=None, first_token_at=None)
    waiting["queue"] = {"reason": "upstream_busy"}
    failed = generation(4, "failed", error={"code": "upstream_error"})
    _, *lines = [line.text.split()[1:] for line in shown.lines([running, ended, waiting, failed], 1001.5, 0)]
    assert lines == [
        ["in_progress", "m", "11s", "1.50s", "30", "3.0", "1", "-"],
        ["completed", "m", "11s", "1.50s", "~21", "2.0", "1", "-"],
        ["queued", "m", "11s", "-", "-", "-", "-", "upstream_busy"],
        ["failed", "m", "11s", "1.50s", "-", "-", "1", "upstream_error"],
    ]


@pytest.mark.parametrize("width", [1, 9, 40, 72, 120, 300])
@pytest.mark.parametrize("model", ["a\x1b[2J\nb\x07\u202eevil\u2028", "模型" * 40, "e\u0301" * 90])
def test_no_text_exceeds_its_line(model: str, width: int) -> None:
    lines = list(TopTable().lines([generation(1, model=model)], 1001.0, width))
    assert len(lines) == 2
    for line in lines:
        assert cells_wide(line.text) == width
        assert all(char.isprintable() for char in line.text)


def test_a_wide_character_is_not_cut() -> None:
    assert pad("模型模型", 4) == "模… "
    assert pad("ab", 4) == "ab  "
    assert pad("ab", 4, right=True) == "  ab"
    assert pad("ab", 0) == ""
