"""Times and durations on the command line."""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Any

import click

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)", re.ASCII)
_UNIX = re.compile(r"\d{9,12}(?:\.\d+)?", re.ASCII)


class Duration(click.ParamType[float]):
    """A number of seconds, or a number with a unit: 90, 30s, 15m, 2h, 7d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = _seconds(str(value))
        if seconds is None:
            self.fail(f"{value!r} is not a duration; examples: 90, 30s, 15m, 2h, 7d.", param, ctx)
        return seconds


class Moment(click.ParamType[float]):
    """A time: a duration before now (or after it, with `ahead`), unix seconds, or ISO 8601 in local time or with an
    offset."""

    name = "time"

    def __init__(self, *, ahead: bool = False) -> None:
        self._sign = 1 if ahead else -1

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value)
        if _UNIX.fullmatch(text):
            return float(text)
        if (seconds := _seconds(text)) is not None:
            return time.time() + self._sign * seconds
        try:
            return datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError):
            self.fail(f"{text!r} is not a time; examples: 15m, 2h, 1763790000, 2026-01-31T12:00Z.", param, ctx)


def _seconds(text: str) -> float | None:
    found = _DURATION.fullmatch(text)
    return float(found[1]) * _UNITS[found[2]] if found else None
