"""Cancelling."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from broker.concurrency.cancellation import cancel_and_wait


async def test_who_misses_a_cancellation_is_cancelled_again() -> None:
    """As a loop does that meets it in `asyncio.wait_for`, at the moment of the result."""
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


async def test_it_tells_how_each_ended() -> None:
    async def fail() -> None:
        raise ValueError

    failing, waiting = asyncio.create_task(fail()), asyncio.create_task(asyncio.Event().wait())
    await asyncio.sleep(0)
    first, second = await cancel_and_wait([failing, waiting])
    assert isinstance(first, ValueError)
    assert isinstance(second, asyncio.CancelledError)
    assert await cancel_and_wait([]) == []
