"""Backoff: delays that grow until a success. Log throttle: the same message once a minute."""

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


async def test_delays_grow_to_the_maximum_until_a_success(waits: list[float]) -> None:
    attempts = Backoff(0.1, longest=0.5)
    for _ in range(5):
        await attempts.wait()
    assert attempts.failing
    attempts.success()
    assert not attempts.failing
    await attempts.wait()
    for slept, most in zip(waits, (0.1, 0.2, 0.4, 0.5, 0.5, 0.1), strict=True):
        assert most / 2 <= slept <= most


def test_a_persisting_message_is_logged_again_after_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(backoff.time, "monotonic", lambda: now)
    throttle = LogThrottle()
    for _ in range(100):
        throttle.tell(log, "away")
    throttle.tell(log, "full")
    assert caplog.messages == ["away", "full"]
    now += backoff.REPEATED
    throttle.tell(log, "away")
    throttle.over()
    throttle.tell(log, "away")
    assert caplog.messages == ["away", "full", "away", "away"]
    throttle.tell(log, "lost", topic="connection")
    throttle.tell(log, "refused", topic="connection")
    assert caplog.messages[4:] == ["lost"]
