"""One question for all who ask it at once, and never an answer that is older than the asking."""

from __future__ import annotations

import asyncio

import pytest

from broker.concurrency.single_flight import SingleFlight
from tests.support import gather


class Source:
    """Answers how often it was asked, when it is let."""

    def __init__(self) -> None:
        self.asked = 0
        self.open = asyncio.Event()

    async def answer(self, *question: str) -> tuple[int, tuple[str, ...]]:
        self.asked += 1
        number = self.asked
        await self.open.wait()
        return number, question


async def _settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_comes_while_one_is_under_way_shares_the_next() -> None:
    source = Source()
    together = SingleFlight(source.answer)
    first = asyncio.create_task(together.call("a"))
    await _settled()
    herd = [asyncio.create_task(together.call("a")) for _ in range(50)]
    other = asyncio.create_task(together.call("b", "c"))
    await _settled()
    assert source.asked == 2  # the first, and the other question
    source.open.set()
    assert await first == (1, ("a",))
    assert await other == (2, ("b", "c"))
    assert set(await gather(*herd)) == {(3, ("a",))}
    assert source.asked == 3
    assert await together.call("a") == (4, ("a",))


async def test_a_failure_is_everybody_s_and_the_next_asks_anew() -> None:
    failing = [OSError("away")]

    async def answer() -> str:
        await asyncio.sleep(0)
        if failing:
            raise failing.pop()
        return "there"

    together = SingleFlight(answer)
    results = await asyncio.gather(together.call(), together.call(), return_exceptions=True)
    assert [type(result) for result in results] == [OSError, OSError]
    assert await together.call() == "there"


async def test_who_leaves_takes_nobody_s_answer_away() -> None:
    source = Source()
    together = SingleFlight(source.answer)
    leaving, staying = asyncio.create_task(together.call("a")), asyncio.create_task(together.call("a"))
    await _settled()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    source.open.set()
    assert await staying == (1, ("a",))
