"""Attempts that have ended, kept for a while in case Redis forgets their endings."""

from __future__ import annotations

import time
from collections import deque

from worker.attempt import Attempt

LINGER = 15.0  # seconds
LINGER_BYTES = 64 << 20


class EndedAttempts:
    """The oldest go first: after 15 seconds of contact with the server, or above 64 MiB. Only contact counts, since a
    server that is away may come back without the ending, whatever time that takes."""

    def __init__(self, longest_gap: float) -> None:
        """`longest_gap`: seconds between two answers that count as contact at most; the server may have hung between
        them, or this machine slept."""
        self._longest_gap = longest_gap
        self._kept: deque[tuple[float, Attempt]] = deque()
        self._bytes = 0
        self._contact = 0.0  # seconds
        self._answered_at = 0.0

    def __bool__(self) -> bool:
        return bool(self._kept)

    def connected(self) -> None:
        """Contact begins."""
        self._answered_at = time.monotonic()

    def answered(self) -> None:
        """The server has answered."""
        now = time.monotonic()
        self._contact += min(now - self._answered_at, self._longest_gap)
        self._answered_at = now

    def add(self, attempt: Attempt) -> None:
        self._kept.append((self._contact + LINGER, attempt))
        self._bytes += attempt.size

    def take_all(self) -> list[Attempt]:
        """Empty it, to send all endings again."""
        attempts = [attempt for _, attempt in self._kept]
        self._kept.clear()
        self._bytes = 0
        return attempts

    def forget_old(self, contact: float | None = None) -> None:
        """`contact`: seconds of it, instead of what there was."""
        until = self._contact if contact is None else contact
        while self._kept and (self._kept[0][0] < until or self._bytes > LINGER_BYTES):
            self._bytes -= self._kept.popleft()[1].size
