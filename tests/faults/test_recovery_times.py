"""The promises about times, measured with the default settings."""

from __future__ import annotations

import statistics

import pytest

from tests.bench.recovery import cancelled, cancelled_without_a_worker, killed_worker, stopped_worker

IMMEDIATE = 5.0  # seconds; far above the usual duration, and far below the lease of 15


async def test_generations_of_a_killed_worker_restart_within_twenty_seconds() -> None:
    times = await killed_worker(doomed=1, after=(0, 1))
    assert times
    assert max(times) <= 20


async def test_a_stopped_worker_hands_over_before_its_lease_expires() -> None:
    assert max(await stopped_worker()) < IMMEDIATE


@pytest.mark.parametrize("silent", [False, True], ids=["streams", "is-silent"])
async def test_a_cancel_reaches_an_upstream_within_a_second(silent: bool) -> None:
    let_go, told = await cancelled(silent=silent, times=5)
    assert statistics.median(let_go) <= 1
    assert max(told) < IMMEDIATE


async def test_a_cancel_needs_no_worker() -> None:
    assert max(await cancelled_without_a_worker()) < IMMEDIATE
