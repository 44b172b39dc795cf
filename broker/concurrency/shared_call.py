"""One execution for concurrent calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SharedCall(Generic[T]):
    """Callers that arrive during an execution share it, with its result or exception; the next call starts another.

    Use `SingleFlight` instead if a result must not be older than the call. A cancelled caller does not cancel the
    execution, which others may wait for."""

    def __init__(self, call: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._call = call
        self._task: asyncio.Task[T] | None = None

    async def __call__(self) -> T:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._call())
            self._task.add_done_callback(retrieve_exception)
        return await asyncio.shield(self._task)


def retrieve_exception(task: asyncio.Task[Any]) -> None:
    """Mark a failure as retrieved. All callers may have been cancelled: asyncio would report it as never retrieved."""
    if not task.cancelled():
        task.exception()
