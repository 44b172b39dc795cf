"""Concurrent calls share one execution; the next call starts another."""

from __future__ import annotations

import asyncio

import pytest

from broker.concurrency.shared_call import SharedCall


class Counted:
    """A function that waits for the test. Its result is the number of the execution."""

    def __init__(self) -> None:
        self.count = 0
        self.started = asyncio.Event()
        self.go = asyncio.Event()

    async def run(self) -> int:
        self.count += 1
        number = self.count
        self.started.set()
        await self.go.wait()
        if number == 2:
            raise ValueError("second")
        return number


async def test_concurrent_calls_share_a_result_and_an_exception() -> None:
    counted = Counted()
    shared = SharedCall(counted.run)
    counted.go.set()
    assert await asyncio.gather(shared(), shared(), shared()) == [1, 1, 1]
    failures = await asyncio.gather(shared(), shared(), return_exceptions=True)
    assert [str(failure) for failure in failures] == ["second", "second"]
    assert await shared() == 3


async def test_a_cancelled_caller_leaves_the_others_their_result() -> None:
    counted = Counted()
    shared = SharedCall(counted.run)
    first, second = asyncio.create_task(shared()), asyncio.create_task(shared())
    await counted.started.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    counted.go.set()
    assert await second == 1
