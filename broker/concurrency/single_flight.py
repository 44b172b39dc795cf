"""Single-flight: concurrent identical calls share one execution. A thousand readers at once cost Redis two reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from broker.concurrency.shared_call import retrieve_exception

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Shares executions of a function among concurrent callers with the same arguments.

    A call that arrives during an execution waits for the next one: no result is older than the call itself.
    """

    def __init__(self, function: Callable[..., Coroutine[Any, Any, T]]) -> None:
        self._function = function
        self._running: dict[tuple[str, ...], asyncio.Task[T]] = {}
        self._next: dict[tuple[str, ...], asyncio.Task[T]] = {}

    async def call(self, *arguments: str) -> T:
        """Return or raise the outcome of the function. Cancelling one caller does not affect the others."""
        task = self._next.get(arguments)
        if task is None:
            task = self._next[arguments] = asyncio.get_running_loop().create_task(self._execute(arguments))
            task.add_done_callback(retrieve_exception)
        try:
            return await asyncio.shield(task)
        finally:
            del task  # an exception references this frame, which would reference the exception: a cycle

    async def _execute(self, arguments: tuple[str, ...]) -> T:
        previous = self._running.get(arguments)
        if previous is not None:
            await asyncio.wait((previous,))
        own = self._running[arguments] = self._next.pop(arguments)
        try:
            return await self._function(*arguments)
        finally:
            if self._running.get(arguments) is own:
                del self._running[arguments]
            del previous, own  # as above
