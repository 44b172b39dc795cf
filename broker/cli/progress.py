"""What a person at a terminal is told while there is nothing to read yet: one line on stderr, which goes away."""

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

_EVERY = 1.0  # seconds
_CLEAR = "\r\x1b[K"
_COUNTED = 100  # generations


class ProgressLine:
    """A context manager. Where stderr is no terminal, or `gid` None, it says nothing and asks nothing."""

    def __init__(self, client: Client, gid: str | None) -> None:
        self._client = client
        self._gid = gid
        self._over = threading.Event()
        self._writing = threading.Lock()
        self._shown = False
        self._retry_at = 0.0  # when the upstream is asked again

    def __enter__(self) -> Self:
        if self._gid is not None and sys.stderr.isatty():
            threading.Thread(target=self._tell, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def heard(self, received: Received) -> None:
        """Of an event, before it is printed."""
        if received.event == "chunk" or received.event in TERMINAL:
            self._end()
            return
        self.clear()
        if received.event == "waiting":
            self._retry_at = float(json.loads(received.data)["retry_at"])

    def _end(self) -> None:
        if not self._over.is_set():
            self._over.set()
            self.clear()

    def clear(self) -> None:
        """Somebody else is about to write."""
        with self._writing:
            if self._shown:
                click.echo(_CLEAR, nl=False, err=True)
            self._shown = False

    def _tell(self) -> None:
        while not self._over.wait(_EVERY):
            try:
                text = self._state()
            except Exception:  # noqa: S112 - who follows is told of what is wrong, if anything is
                continue
            with self._writing:
                if text and not self._over.is_set():
                    self._shown = True
                    click.echo(f"{_CLEAR}tokencast: {text}", nl=False, err=True)

    def _state(self) -> str:
        now = time.time()
        if now < self._retry_at:
            return f"the upstream is asked again in {duration(self._retry_at - now + 1)}"
        generation = self._client.get(f"/v1/generations/{self._gid}")
        if generation["status"] == "in_progress":
            return f"waiting for the first token, {duration(now - generation['started_at'])}"
        if generation["status"] != "queued":
            return ""
        older = self._client.get("/v1/generations", status="queued", after=generation["id"], limit=_COUNTED)
        more = " or more" if older["has_more"] else ""
        return f"queued for {duration(now - generation['created_at'])}, {len(older['data'])}{more} before it"
