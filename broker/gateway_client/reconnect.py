"""Delays between attempts to reach a gateway."""

from __future__ import annotations

import random
import time

from broker.gateway_client.connection import Unreachable

GIVE_UP = 120.0
"""Seconds without a response from a gateway that responded before."""
TRY_LATER = frozenset({429, 502, 503, 504})
"""Statuses of a gateway, or of a proxy, that is there but cannot serve the request now."""
_FIRST_WAIT = 0.25
_LONGEST_WAIT = 5.0


class ReconnectDelay:
    """Delay before the next connection: the one that the server requested, otherwise an exponential one."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._failures = 0
        self._heard = time.monotonic()
        self.connected = False
        self.ended = False
        self.retry: float | None = None

    @property
    def lost(self) -> bool:
        return self._failures > 0

    def contact(self) -> None:
        self.connected, self._heard = True, time.monotonic()

    def set_retry_after(self, seconds: str) -> None:
        """Set the delay from a Retry-After header."""
        self.contact()
        if seconds.isascii() and seconds.isdigit():
            self.retry = min(float(seconds), GIVE_UP)

    def wait(self, *, progress: bool) -> None:
        if time.monotonic() - self._heard > GIVE_UP:
            raise Unreachable(f"{self._url} has not responded for {GIVE_UP:.0f} s")
        self._failures = 0 if progress else self._failures + 1
        growing = min(_FIRST_WAIT * 2**self._failures, _LONGEST_WAIT) * random.uniform(0.5, 1)
        time.sleep(growing if self.retry is None else self.retry)
        self.retry = None
