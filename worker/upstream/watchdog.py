"""`Watchdog`, the timeout of an upstream that sends no chunks."""

from __future__ import annotations

import asyncio
from typing import Any


class Watchdog:
    """Cancels the block if no chunk arrives for too long. Keep-alive comments do not count, and time in which the
    stream is not read does not count either. There is one timer, which is moved only when it fires: an
    `asyncio.timeout` that is moved per chunk costs more than the chunk."""

    def __init__(self, first: float, idle: float) -> None:
        self._first, self._idle = first, idle
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time() + first
        self._scope = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None
        self._started = False

    async def __aenter__(self) -> None:
        await self._scope.__aenter__()
        self._timer = self._loop.call_at(self._due, self._check)

    async def __aexit__(self, *raised: Any) -> bool | None:
        if self._timer is not None:
            self._timer.cancel()
        return await self._scope.__aexit__(*raised)

    @property
    def expired(self) -> bool:
        return self._scope.expired()

    @property
    def message(self) -> str:
        if self._started:
            return f"The upstream sent nothing for {self._idle:g} s."
        return f"The upstream sent no chunk within {self._first:g} s."

    def resume(self) -> None:
        """Count the time again: the stream is read."""
        if self._started:
            self._due = self._loop.time() + self._idle

    def chunk_received(self) -> None:
        """Stop counting until `resume`: a chunk arrived."""
        self._due = float("inf")
        if not self._started and self._timer is not None:
            self._started = True
            self._timer.cancel()  # `first` may exceed `idle`
            self._timer = self._loop.call_later(self._idle, self._check)

    def _check(self) -> None:
        now = self._loop.time()
        if self._due <= now:
            self._scope.reschedule(now)
            return
        self._timer = self._loop.call_at(min(self._due, now + self._idle), self._check)
