"""How long this process has observed a Redis server without interruption.

Leases end by Redis's clock, and workers that must reach Redis renew them. An expired lease therefore proves the death
of its owner only if the server answered, and its clock ran as fast as ours, for the length of a whole lease.
"""

from __future__ import annotations

import math
import time

SLOW = 1.0  # seconds after which an answer counts as an interruption
STEP = 0.5  # seconds; a larger change of the offset between the clocks means that a clock was set


class Continuity:
    """Observations of one server, each a query that the server answers with its time."""

    def __init__(self, longest_gap: float) -> None:
        """`longest_gap`: maximum seconds between two observations; a longer gap means that this process was
        suspended."""
        self._longest_gap = longest_gap
        self._server = b""
        self._ahead: tuple[float, float] | None = None
        self._seen_at = -math.inf
        self._since = math.inf

    def observe(self, server: bytes, clock: float, sent: float, received: float) -> bool:
        """Record that the server with this name (its `run_id`) reported the time `clock` (Unix seconds), in answer to a
        query sent and received at these times of `time.monotonic`. Return whether its clock may have gone back since
        the previous observation."""
        known, ahead = self._ahead, (clock - received, clock - sent)
        another = known is None or server != self._server
        back = known is None or another or ahead[1] < known[0] - STEP
        forward = known is not None and ahead[0] > known[1] + STEP
        away = received - sent > SLOW or received - self._seen_at > self._longest_gap
        if back or forward or away or self._since == math.inf:
            self._since = received
        self._server, self._ahead, self._seen_at = server, ahead, received
        return back

    def record_reply(self) -> None:
        """Record that the server answered another command."""
        self._seen_at = time.monotonic()

    def reset(self) -> None:
        """Record that the server did not answer, or too late."""
        self._since = math.inf

    def duration(self) -> float:
        """Return the seconds without interruption until now."""
        return max(0.0, time.monotonic() - self._since)

    def deadline(self) -> float:
        """Return the latest time (Unix seconds, by the server's clock) at which a command that is sent now is executed
        unless the server hangs or its clock is set."""
        return time.monotonic() + (self._ahead[1] if self._ahead else math.inf) + SLOW
