"""The table of `top`: the latest known state of each generation, rendered as lines that fit a terminal."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from broker.chunks import Json
from broker.cli.tables import duration, error_code, one_line, tokens
from broker.events import FINAL_STATUSES, STATUSES
from broker.ids import parse_cursor

KEPT = 1000  # maximum number of ended generations
WIDE = 120  # minimum width, in columns, at which whole ids are shown
_SHORT = 8  # characters of a shortened id: its end, which differs most
_ORDER = {"in_progress": 0, "queued": 1}


class Line(NamedTuple):
    text: str
    style: str = ""  # "head", "faint" or ""


class TopTable:
    """Holds generation summaries, which may arrive in any order and more than once, and the latest overview."""

    def __init__(self) -> None:
        self.overview: Json | None = None
        self._known: dict[str, Json] = {}

    def update(self, generation: Json) -> None:
        """Store a summary unless a newer one is known."""
        known = self._known.get(generation["id"])
        if known is not None and parse_cursor(generation["cursor"]) < parse_cursor(known["cursor"]):
            return
        self._known[generation["id"]] = generation
        if len(self._known) > 2 * KEPT:
            ended = [one for one in self.rows(None) if one["status"] in FINAL_STATUSES]
            for one in ended[KEPT:]:
                del self._known[one["id"]]

    def remove(self, gid: str) -> None:
        self._known.pop(gid, None)

    def clear(self) -> None:
        self._known.clear()

    def counts(self) -> Json:
        """Return the number of generations by status: the gateway's count if there is one, else of those known here."""
        if self.overview is not None:
            return self.overview["generations"]
        return Counter(one["status"] for one in self._known.values())

    def rows(self, status: str | None) -> list[Json]:
        """Return the running, queued and ended generations, in this order, each group newest first."""
        chosen = (one for one in self._known.values() if status in (None, one["status"]))
        return sorted(chosen, key=lambda one: (_ORDER.get(one["status"], 2), -(one["ended_at"] or one["created_at"])))

    def summary(self) -> str:
        """Return one line: the counters and, if there is an overview, the queue and the workers."""
        counts = self.counts()
        parts = [f"{counts.get(status, 0)} {status}" for status in STATUSES]
        if self.overview is not None:
            queue, workers = self.overview["queue"], self.overview["workers"]
            waited = f", {duration(queue['oldest_seconds'])}" if queue["depth"] else ""
            slots = sum(worker["slots"] for worker in workers)
            parts.append(f"queue {queue['depth']}{waited}")
            busy = sum(worker["running"] for worker in workers)
            parts.append(f"{len(workers)} worker{'s' * (len(workers) != 1)}, {busy}/{slots} slots")
        return "  ".join(parts)

    def lines(self, generations: Iterable[Json], now: float, width: int) -> Iterator[Line]:
        """Yield the heading and one line per generation, each exactly `width` columns wide; 0: no fixed width."""
        whole = not 0 < width < WIDE
        cells = [(one["status"] in FINAL_STATUSES, _cells(one, now, whole)) for one in generations]
        heading = ("ID", "STATUS", "MODEL", "AGE", "FIRST", "TOKENS", "TOK/S", "ATTEMPT", "ERROR")
        widths = [max(map(cells_wide, column)) for column in zip(heading, *(row for _, row in cells), strict=True)]
        others = sum(widths) - widths[2] + 2 * (len(widths) - 1)
        if width:
            widths[2] = min(widths[2], max(8, width - others))
        for faint, row in [(None, heading), *cells]:
            sized = enumerate(zip(row, widths, strict=True))
            line = "  ".join(pad(cell, size, right=2 < at < len(row) - 1) for at, (cell, size) in sized)
            yield Line(pad(line, width) if width else line, "head" if faint is None else "faint" if faint else "")


def _cells(one: Json, now: float, whole: bool) -> tuple[str, ...]:
    gid = one["id"] if whole else one["id"][-_SHORT:]
    first, until = one["first_token_at"], one["ended_at"] or now
    length, rate = tokens(one["usage"]), "-"
    if one["status"] == "in_progress":
        length = str(max(0, parse_cursor(one["cursor"]).seq))  # chunks so far: token counts come at the end
    if first is not None and length != "-" and until - first > 0:
        rate = f"{int(length.removeprefix('~')) / (until - first):.1f}"
    return (
        one_line(gid),
        one_line(one["status"]),
        one_line(one["model"]),
        duration(now - one["created_at"]),
        f"{first - one['created_at']:.2f}s" if first is not None else "-",
        length,
        rate,
        str(one["attempt"] or "-"),
        one_line(error_code(one)),
    )


def cells_wide(text: str) -> int:
    """Return the number of terminal columns of a text."""
    return sum(map(_cell, text))


def pad(text: str, width: int, *, right: bool = False) -> str:
    """Pad a text to a width, or cut it off with an ellipsis."""
    missing = width - cells_wide(text)
    if missing >= 0:
        return " " * missing + text if right else text + " " * missing
    kept, room = "", width - 1
    for char in text:
        room -= _cell(char)
        if room < 0:
            break
        kept += char
    return pad(kept + "…" * (width > 0), width)


def _cell(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
