"""Ending tasks for sure."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

AGAIN = 0.5  # seconds


async def cancel_and_wait(tasks: Iterable[asyncio.Future[Any]]) -> list[Any]:
    """Cancels them until they have ended; what each ended with, an exception or its result.

    Once is not enough: before Python 3.12 `asyncio.wait_for`, and with it every call of the Redis library, forgets a
    cancellation that comes with its result (cpython issue 86296), and a loop that survives its errors then goes on.
    """
    everything = list(tasks)
    pending = set(everything)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=AGAIN)
    return await asyncio.gather(*everything, return_exceptions=True)
