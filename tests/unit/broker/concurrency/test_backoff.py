"""Waits that grow until something has worked, and messages that are logged once a minute."""

from __future__ import annotations

import asyncio
import logging

import pytest

from broker.concurrency import backoff
from broker.concurrency.backoff import Backoff, LogThrottle

log = logging.getLogger("tokencast.test")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return slept


async def test_waits_grow_up_to_the_longest_until_something_has_worked(waits: list[float]) -> None:
    attempts = Backoff(0.1, longest=0.5)
    for _ in range(5):
        await attempts.wait()
    assert attempts.failing
    attempts.success()
    assert not attempts.failing
    await attempts.wait()
    for slept, most in zip(waits, (0.1, 0.2, 0.4, 0.5, 0.5, 0.1), strict=True):
        assert most / 2 <= slept <= most


def test_what_is_still_the_matter_is_logged_again_after_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(backoff.time, "monotonic", lambda: now)
    troubles = LogThrottle()
    for _ in range(100):
        troubles.tell(log, "away")
    troubles.tell(log, "full")
    assert caplog.messages == ["away", "full"]
    now += backoff.REPEATED
    troubles.tell(log, "away")
    troubles.over()
    troubles.tell(log, "away")
    assert caplog.messages == ["away", "full", "away", "away"]
    troubles.tell(log, "lost", topic="connection")
    troubles.tell(log, "refused", topic="connection")
    assert caplog.messages[4:] == ["lost"]
