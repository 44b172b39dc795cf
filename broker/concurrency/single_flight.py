"""One question for all who ask it at the same time: a herd of readers costs Redis two reads, not one each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Who comes while a question is under way shares the next one: no answer is older than its asking."""

    def __init__(self, ask: Callable[..., Coroutine[Any, Any, T]]) -> None:
        self._ask = ask
        self._under_way: dict[tuple[str, ...], asyncio.Task[T]] = {}
        self._next: dict[tuple[str, ...], asyncio.Task[T]] = {}

    async def ask(self, *question: str) -> T:
        """What `ask(*question)` gives or raises. Whoever stops waiting leaves the others theirs."""
        asking = self._next.get(question)
        if asking is None:
            asking = self._next[question] = asyncio.get_running_loop().create_task(self._asked(question))
            asking.add_done_callback(_heard)
        try:
            return await asyncio.shield(asking)
        finally:
            del asking  # an error holds this frame, which would hold the error: a circle

    async def _asked(self, question: tuple[str, ...]) -> T:
        before = self._under_way.get(question)
        if before is not None:
            await asyncio.wait((before,))
        mine = self._under_way[question] = self._next.pop(question)
        try:
            return await self._ask(*question)
        finally:
            if self._under_way.get(question) is mine:
                del self._under_way[question]
            del before, mine  # as above


def _heard(task: asyncio.Task[Any]) -> None:
    """Nobody may be left who wants to know that it failed."""
    if not task.cancelled():
        task.exception()
