"""The progress bar of `batch`, on terminals only."""

from __future__ import annotations

import shutil
import sys
import time

import click

from broker.cli.output import CONTROL
from broker.cli.top.table import pad

_WIDTH = 24  # characters of the bar
_INTERVAL = 0.1  # seconds between two drawings
_CLEAR = "\r\x1b[K"


class ProgressBar:
    """Shows how many requests are done, failed, running and waiting."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._visible = sys.stderr.isatty()
        self._shown = False
        self._drawn = 0.0

    def draw(self, done: int, failed: int, running: int, *, now: bool = False) -> None:
        """Draw the bar, at most ten times a second unless `now` is set."""
        if not self._visible or (not now and time.monotonic() < self._drawn + _INTERVAL):
            return
        text = bar(self._total, done, failed, running)
        columns = shutil.get_terminal_size().columns
        self._shown = True  # first: Ctrl-C may come while it is drawn
        click.echo(_CLEAR + (pad(text, columns - 1) if len(text) >= columns else text), nl=False, err=True)
        self._drawn = time.monotonic()

    def note(self, text: str) -> None:
        """Print a notice in place of the bar."""
        self.clear()
        click.echo(f"tokencast: {text.translate(CONTROL)}", err=True)

    def clear(self) -> None:
        """Erase the bar, so that something else can be printed."""
        if self._shown:
            click.echo(_CLEAR, nl=False, err=True)
        self._shown = False


def bar(total: int, done: int, failed: int, running: int) -> str:
    """Return the text of the bar."""
    filled = _WIDTH * done // total
    counted = ((failed, "failed"), (running, "running"), (total - done - running, "waiting"))
    counts = "".join(f", {number} {name}" for number, name in counted if number > 0)
    return f"[{'#' * filled}{'-' * (_WIDTH - filled)}] {100 * done // total:3}%  {done} of {total} done{counts}"
