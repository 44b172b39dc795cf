"""Waits between attempts, and the one place that counts how often something was said."""

from __future__ import annotations

import asyncio
import logging
import random
import time

REPEATED = 60.0  # seconds after which what is still the matter is logged again


class Backoff:
    """Growing waits with jitter. A connection that is made proves nothing: only a `success` starts them anew."""

    def __init__(self, first: float = 0.05, longest: float = 2.0) -> None:
        """In seconds."""
        self._first = self._next = first
        self._longest = longest
        self.failing = False

    def success(self) -> None:
        """What is tried has worked."""
        self.failing = False
        self._next = self._first

    async def wait(self) -> None:
        """Sleep after a failure: twice as long as after the one before, up to `longest`."""
        self.failing = True
        delay, self._next = self._next, min(2 * self._next, self._longest)
        await asyncio.sleep(delay * random.uniform(0.5, 1))


class LogThrottle:
    """What is the matter with one Redis, logged once a minute however many connections meet it."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def tell(self, logger: logging.Logger, message: str, level: int = logging.WARNING) -> None:
        """Log it, unless that was done within the last minute."""
        now = time.monotonic()
        if now - self._said.get(message, float("-inf")) >= REPEATED:
            self._said[message] = now
            logger.log(level, "%s", message)

    def over(self) -> None:
        """Something works again: whatever is the matter from now on is news."""
        self._said.clear()
