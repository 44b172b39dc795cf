"""Reliable cancellation of tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

AGAIN = 0.5  # seconds until a task that still runs is cancelled again


async def cancel_and_wait(tasks: Iterable[asyncio.Future[Any]]) -> list[Any]:
    """Cancel tasks and wait until they are done; return their results or exceptions.

    Cancels repeatedly: before Python 3.12, `asyncio.wait_for`, and with it every call of the Redis library, loses a
    cancellation that arrives together with its result (cpython issue 86296), and a loop that handles its own errors
    then continues.
    """
    everything = list(tasks)
    pending = set(everything)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=AGAIN)
    return await asyncio.gather(*everything, return_exceptions=True)
