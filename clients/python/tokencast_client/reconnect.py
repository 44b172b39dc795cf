"""Decisions about failures, without I/O: whether to repeat a request or to reconnect, and after which delay."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from tokencast_client.errors import Unreachable

GIVE_UP = 120.0
"""Seconds without a response of a gateway that responded before."""
TRY_LATER = frozenset({429, 502, 503, 504})
"""Statuses of a gateway, or of a proxy, that is there but cannot serve the request now."""
_FIRST_DELAY = 0.25
_LONGEST_DELAY = 5.0
_LONGEST_RETRY_AFTER = 10.0
"""Seconds that a single request waits for a gateway that asks for a delay; a longer one is left to the caller."""


class Attempts:
    """Decides whether one request is repeated: after a lost connection, or a response that asks for it."""

    def __init__(self, maximum: int, *, repeatable: bool) -> None:
        """`maximum`: number of repetitions."""
        self._left = maximum if repeatable else 0
        self.failures = 0

    def delay(self, status: int | None = None, *, retry_after: float | None = None, should_retry: bool = True) -> float:
        """Return the seconds after which to repeat the request; -1 if its failure is final. `status`: of the response,
        if there was one."""
        final = status is not None and (status not in TRY_LATER or not should_retry)
        if final or self._left <= 0 or (retry_after or 0.0) > _LONGEST_RETRY_AFTER:
            return -1.0
        self._left -= 1
        self.failures += 1
        return growing(self.failures - 1) if retry_after is None else retry_after


class ReconnectDelay:
    """Delays between the connections of a stream: those that the server asks for, otherwise exponential ones."""

    def __init__(
        self, url: str, attempts: int, on_disconnect: Callable[[str], object] | None = None, *, give_up: float = GIVE_UP
    ) -> None:
        """`attempts`: number of failures before the first response that are survived."""
        self._url = url
        self._attempts = attempts
        self._on_disconnect = on_disconnect
        self._give_up = give_up
        self._failures = 0
        self._reported = False
        self._heard: float | None = None
        self.retry: float | None = None

    def contact(self) -> None:
        """Note that the gateway responds."""
        self._heard = time.monotonic()

    def ask(self, seconds: float | None) -> None:
        """Set the next delay, as the server asks for it."""
        if seconds is not None:
            self.retry = min(seconds, GIVE_UP)

    def lost(self, error: Unreachable) -> None:
        """Note a broken connection. Raises the error if no connection has succeeded yet."""
        if self._heard is None:
            if self._attempts <= 0:
                raise error
            self._attempts -= 1
        elif not self._reported and self._on_disconnect is not None:
            self._on_disconnect(str(error))
        self._reported = True

    def next(self, *, progress: bool) -> float:
        """Return the delay before the next connection. `progress`: whether the last one brought an event. Raises
        Unreachable if the gateway has not responded for too long."""
        if self._heard is not None and time.monotonic() - self._heard > self._give_up:
            raise Unreachable(f"{self._url} has not responded for {self._give_up:.0f} s")
        self._failures = 0 if progress else self._failures + 1
        if progress:
            self._reported = False
        delay, self.retry = self.retry, None
        return growing(self._failures) if delay is None else delay


def growing(failures: int) -> float:
    """Return an exponential delay with jitter."""
    doubled = _FIRST_DELAY * 2 ** min(failures, 10)  # a float has no room for the power of some thousand failures
    return min(doubled, _LONGEST_DELAY) * random.uniform(0.5, 1)
