"""What a process knows of the receivers' hosts: deliveries under way, failures in a row, and when to call again."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

STEPS = (5.0, 30.0, 120.0, 600.0, 3600.0)
"""Seconds until the next attempt: after the first failure, the second … and after each further one."""
PER_HOST = 2
FAILURES = 5
_KNOWN = 10_000  # hosts; callers name them


def step(steps: Sequence[float], failures: int) -> float:
    """Return the time to wait after this many failures in a row, from 1."""
    return steps[min(failures, len(steps)) - 1]


@dataclass(slots=True)
class _Host:
    """`closed_at`, `until`: monotonic times between which the host is not called."""

    busy: int = 0
    failures: int = 0
    closed_at: float = 0.0
    until: float = 0.0


class Hosts:
    """The hosts that this process calls. A host that has failed FAILURES times in a row is called by one delivery at a
    time, after the times in `steps`. Otherwise its entries, of which there may be thousands, would occupy all
    deliveries for ten seconds each."""

    def __init__(self, steps: Sequence[float] = STEPS) -> None:
        self._steps = steps
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        self.busy = 0
        """Number of deliveries under way."""

    def room(self, name: str) -> int:
        """Return how many more deliveries to a host may begin; of a closed one, by hand."""
        host = self._hosts.get(name)
        if host is None:
            return PER_HOST
        most = 1 if host.failures >= FAILURES and host.until <= time.monotonic() else PER_HOST
        return max(0, most - host.busy)

    def closed_for(self, name: str) -> float | None:
        """Return the seconds for which a host is not called; None if it is."""
        host = self._hosts.get(name)
        left = 0.0 if host is None else host.until - time.monotonic()
        return left if left > 0 else None

    def begin(self, name: str, count: int) -> None:
        """Count deliveries that begin."""
        self._hosts.setdefault(name, _Host()).busy += count
        self._hosts.move_to_end(name)
        self.busy += count
        if len(self._hosts) > _KNOWN:
            self._forget_oldest()

    def end(self, name: str, count: int = 1) -> None:
        """Count deliveries that have ended, or did not begin."""
        self._hosts[name].busy -= count
        self.busy -= count

    def succeeded(self, name: str) -> None:
        """Record that a host works."""
        host = self._hosts[name]
        host.failures, host.until = 0, 0.0

    def failed(self, name: str, began: float, retry_after: float | None) -> None:
        """Record that a host does not work: a delivery failed that began at `began` (monotonic time). One that began
        before the host was closed says nothing new. `retry_after`: seconds for which the host asks not to be called."""
        host = self._hosts[name]
        if began < host.closed_at:
            return
        now, wait = time.monotonic(), retry_after or 0.0
        host.failures += 1
        if host.failures >= FAILURES:
            wait = max(wait, step(self._steps, host.failures - FAILURES + 1))
        if wait:
            host.closed_at, host.until = now, now + wait

    def _forget_oldest(self) -> None:
        for name, host in self._hosts.items():
            if not host.busy:
                del self._hosts[name]
                return
