"""Since when this process has observed a Redis server without interruption.

Leases are kept by Redis's clock, and renewed by workers that must reach Redis. A lease that is over therefore proves
the death of its owner only if the server answered, and its clock went as fast as ours, for the whole of a lease.
"""

from __future__ import annotations

import math
import time

SLOW = 1.0  # seconds after which an answer counts as an interruption
STEP = 0.5  # seconds by which a clock may be off its course


class Continuity:
    """One server, observed by questions that it answers with its time."""

    def __init__(self, longest_gap: float) -> None:
        """`longest_gap`: seconds between two observations, above which this process itself was away."""
        self._longest_gap = longest_gap
        self._server = b""
        self._ahead: tuple[float, float] | None = None
        self._seen_at = -math.inf
        self._since = math.inf

    def observe(self, server: bytes, clock: float, sent: float, received: float) -> bool:
        """The server with this name (its `run_id`) said that it is `clock` (Unix seconds), to a question sent and
        answered at these times of `time.monotonic`. Return whether its clock may have gone back since the last one."""
        known, ahead = self._ahead, (clock - received, clock - sent)
        another = known is None or server != self._server
        back = known is None or another or ahead[1] < known[0] - STEP
        forward = known is not None and ahead[0] > known[1] + STEP
        away = received - sent > SLOW or received - self._seen_at > self._longest_gap
        if back or forward or away or self._since == math.inf:
            self._since = received
        self._server, self._ahead, self._seen_at = server, ahead, received
        return back

    def heard(self) -> None:
        """It answered something else."""
        self._seen_at = time.monotonic()

    def interrupt(self) -> None:
        """It did not answer, or too late."""
        self._since = math.inf

    def lasted(self) -> float:
        """Seconds without interruption until now."""
        return max(0.0, time.monotonic() - self._since)

    def latest(self) -> float:
        """By the server's clock (Unix seconds), the end of the time in which a command that is sent now runs unless the
        server hangs or its clock is set."""
        return time.monotonic() + (self._ahead[1] if self._ahead else math.inf) + SLOW
