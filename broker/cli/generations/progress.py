"""A progress line on stderr until the first text arrives, for terminals only."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Self

import click

from broker.chunks import Json
from broker.cli.tables import duration, why
from tokencast_client import Client, Event

_INTERVAL = 1.0  # seconds
_CLEAR = "\r\x1b[K"


class ProgressLine:
    """A context manager that shows the state of a generation.

    If stderr is not a terminal, or `gid` is None, it prints nothing and sends no requests.
    """

    def __init__(self, client: Client, gid: str | None) -> None:
        self._client = client
        self._gid = gid
        self._ended = threading.Event()
        self._writing = threading.Lock()
        self._shown = False
        self._waits: Json | None = None  # the newest `waiting` event: reason, and time of the next try

    def __enter__(self) -> Self:
        if self._gid is not None and sys.stderr.isatty():
            threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def update(self, event: Event) -> None:
        """Process an event; to be called before it is printed."""
        if event.name == "chunk" or event.terminal:
            self._end()
            return
        self.clear()
        if event.name == "waiting":
            self._waits = event.data
        elif event.name in ("started", "reset"):
            self._waits = None

    def _end(self) -> None:
        if not self._ended.is_set():
            self._ended.set()
            self.clear()

    def clear(self) -> None:
        """Erase the line, so that something else can be printed."""
        with self._writing:
            if self._shown:
                click.echo(_CLEAR, nl=False, err=True)
            self._shown = False

    def _run(self) -> None:
        while not self._ended.wait(_INTERVAL):
            try:
                text = self._state()
            except Exception:  # noqa: S112 - the stream reports what is wrong, if anything is
                continue
            with self._writing:
                if text and not self._ended.is_set():
                    self._shown = True
                    click.echo(f"{_CLEAR}tokencast: {text}", nl=False, err=True)

    def _state(self) -> str:
        now, waits = time.time(), self._waits
        if waits is not None and now < (waits["retry_at"] or 0.0):
            return f"waiting: {why(waits, now)}"
        generation = self._client.get(self._gid or "").raw
        if generation["status"] == "in_progress":
            return f"waiting for the first token, {duration(now - generation['started_at'])}"
        if generation["status"] != "queued":
            return ""
        reason = f": {why(generation['queue'], now)}" if generation["queue"] else ""
        return f"queued for {duration(now - generation['created_at'])}{reason}"
