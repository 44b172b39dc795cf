"""Single-flight: concurrent identical calls share one execution that begins after each of them was made."""

from __future__ import annotations

import asyncio

import pytest

from broker.concurrency.single_flight import SingleFlight
from tests.support import gather


class Source:
    """A function that waits for `open`. Its result is the number of the execution and its arguments."""

    def __init__(self) -> None:
        self.executions = 0
        self.open = asyncio.Event()

    async def run(self, *arguments: str) -> tuple[int, tuple[str, ...]]:
        self.executions += 1
        number = self.executions
        await self.open.wait()
        return number, arguments


async def _settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_calls_during_an_execution_share_the_next_one() -> None:
    source = Source()
    flight = SingleFlight(source.run)
    first = asyncio.create_task(flight.call("a"))
    await _settled()
    concurrent = [asyncio.create_task(flight.call("a")) for _ in range(50)]
    other = asyncio.create_task(flight.call("b", "c"))
    await _settled()
    assert source.executions == 2  # the first call, and the one with other arguments
    source.open.set()
    assert await first == (1, ("a",))
    assert await other == (2, ("b", "c"))
    assert set(await gather(*concurrent)) == {(3, ("a",))}
    assert source.executions == 3
    assert await flight.call("a") == (4, ("a",))


async def test_concurrent_calls_share_a_failure_and_the_next_call_runs_again() -> None:
    failing = [OSError("away")]

    async def answer() -> str:
        await asyncio.sleep(0)
        if failing:
            raise failing.pop()
        return "there"

    flight = SingleFlight(answer)
    results = await asyncio.gather(flight.call(), flight.call(), return_exceptions=True)
    assert [type(result) for result in results] == [OSError, OSError]
    assert await flight.call() == "there"


async def test_a_cancelled_caller_does_not_cancel_the_others() -> None:
    source = Source()
    flight = SingleFlight(source.run)
    leaving, staying = asyncio.create_task(flight.call("a")), asyncio.create_task(flight.call("a"))
    await _settled()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    source.open.set()
    assert await staying == (1, ("a",))
