"""cancel_and_wait: tasks are cancelled until they are done."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from broker.concurrency.cancellation import cancel_and_wait


async def test_a_task_that_ignores_a_cancellation_is_cancelled_again() -> None:
    """`asyncio.wait_for` can swallow a cancellation that coincides with its result."""
    turns = 0

    async def loop() -> None:
        nonlocal turns
        while turns < 3:
            turns += 1
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    task = asyncio.create_task(loop())
    await asyncio.sleep(0)
    assert await cancel_and_wait([task]) == [None]
    assert turns == 3


async def test_the_outcome_of_each_task_is_returned() -> None:
    async def fail() -> None:
        raise ValueError

    failing, waiting = asyncio.create_task(fail()), asyncio.create_task(asyncio.Event().wait())
    await asyncio.sleep(0)
    first, second = await cancel_and_wait([failing, waiting])
    assert isinstance(first, ValueError)
    assert isinstance(second, asyncio.CancelledError)
    assert await cancel_and_wait([]) == []
