"""A progress line on stderr until the first text arrives, for terminals only."""

from __future__ import annotations

import json
import sys
import threading
import time
from types import TracebackType
from typing import Self

import click

from broker.cli.tables import duration
from broker.gateway_client.client import TERMINAL, Client, Received

_INTERVAL = 1.0  # seconds
_CLEAR = "\r\x1b[K"
_COUNTED = 100  # maximum number of queued generations to count


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
        self._retry_at = 0.0  # unix time of the next request to the upstream

    def __enter__(self) -> Self:
        if self._gid is not None and sys.stderr.isatty():
            threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def update(self, received: Received) -> None:
        """Process an event; to be called before it is printed."""
        if received.event == "chunk" or received.event in TERMINAL:
            self._end()
            return
        self.clear()
        if received.event == "waiting":
            self._retry_at = float(json.loads(received.data)["retry_at"])

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
        now = time.time()
        if now < self._retry_at:
            return f"next request to the upstream in {duration(self._retry_at - now + 1)}"
        generation = self._client.get(f"/v1/generations/{self._gid}")
        if generation["status"] == "in_progress":
            return f"waiting for the first token, {duration(now - generation['started_at'])}"
        if generation["status"] != "queued":
            return ""
        older = self._client.get("/v1/generations", status="queued", after=generation["id"], limit=_COUNTED)
        more = " or more" if older["has_more"] else ""
        return f"queued for {duration(now - generation['created_at'])}, {len(older['data'])}{more} before it"
