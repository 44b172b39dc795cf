"""`EndedAttempts`: ended attempts, kept for a while in case Redis loses their terminal events."""

from __future__ import annotations

import time
from collections import deque

from worker.attempt import Attempt

RETENTION = 15.0  # seconds
RETENTION_BYTES = 64 << 20


class EndedAttempts:
    """Queue of ended attempts. The oldest are dropped after 15 seconds of contact with the server, or above 64 MiB.
    Only contact counts, because a server that was unreachable for any time may come back without the terminal event."""

    def __init__(self, max_gap: float) -> None:
        """`max_gap`: maximum seconds between two replies that count as contact; between them the server may have
        hung, or this machine may have been suspended."""
        self._max_gap = max_gap
        self._kept: deque[tuple[float, Attempt]] = deque()
        self._bytes = 0
        self._contact = 0.0  # seconds
        self._replied_at = 0.0

    def __bool__(self) -> bool:
        return bool(self._kept)

    def start_contact(self) -> None:
        """Start counting contact: a connection was opened."""
        self._replied_at = time.monotonic()

    def count_contact(self) -> None:
        """Count the time since the last reply as contact: the server replied."""
        now = time.monotonic()
        self._contact += min(now - self._replied_at, self._max_gap)
        self._replied_at = now

    def add(self, attempt: Attempt) -> None:
        self._kept.append((self._contact + RETENTION, attempt))
        self._bytes += attempt.size

    def pop_all(self) -> list[Attempt]:
        """Remove and return all attempts, to send their terminal events again."""
        attempts = [attempt for _, attempt in self._kept]
        self._kept.clear()
        self._bytes = 0
        return attempts

    def expire(self, contact: float | None = None) -> None:
        """Drop attempts that are old enough. `contact`: seconds of contact to assume instead of the counted ones."""
        now = self._contact if contact is None else contact
        while self._kept and (self._kept[0][0] < now or self._bytes > RETENTION_BYTES):
            self._bytes -= self._kept.popleft()[1].size
