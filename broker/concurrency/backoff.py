"""Exponential backoff, and rate-limited logging of recurring failures."""

from __future__ import annotations

import asyncio
import logging
import random
import time

REPEATED = 60.0  # seconds after which a message is logged again


class Backoff:
    """Exponential delays with jitter. Call `success` after a successful operation: a connection alone does not reset
    the delay."""

    def __init__(self, first: float = 0.05, longest: float = 2.0) -> None:
        """`first` and `longest`: the shortest and the longest delay, in seconds."""
        self._first = self._next = first
        self._longest = longest
        self.failing = False

    def success(self) -> None:
        """Reset the delay after a successful operation."""
        self.failing = False
        self._next = self._first

    async def wait(self) -> None:
        """Sleep after a failure. The delay doubles with each one, up to `longest`."""
        self.failing = True
        delay, self._next = self._next, min(2 * self._next, self._longest)
        await asyncio.sleep(delay * random.uniform(0.5, 1))


class LogThrottle:
    """Logs each message at most once a minute: all connections to one Redis report the same failure."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def tell(
        self, logger: logging.Logger, message: str, level: int = logging.WARNING, *, topic: str | None = None
    ) -> None:
        """Log a message, unless it, or one with the same topic, was logged within the last minute."""
        now = time.monotonic()
        if now - self._said.get(topic or message, float("-inf")) >= REPEATED:
            self._said[topic or message] = now
            logger.log(level, "%s", message)

    def over(self) -> None:
        """Forget all messages, after a recovery: the next failure is logged at once."""
        self._said.clear()
