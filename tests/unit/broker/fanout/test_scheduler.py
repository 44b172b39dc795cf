"""Whose turn it is, and what is read before it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from broker.fanout.feed import Feed
from broker.fanout.scheduler import DeliveryScheduler


class Spy:
    """Notes in one list with all the others what it is asked for."""

    def __init__(self, name: str, said: list[str]) -> None:
        self.due: dict[Feed, None] = {}
        self.name = name
        self.said = said

    def prefetch(self) -> None:
        self.said.append(f"{self.name} reads")

    def collect(self) -> None:
        self.said.append(f"{self.name} collects")


@asynccontextmanager
async def turn(turns: DeliveryScheduler, spy: Spy) -> AsyncGenerator[None]:
    try:
        await turns.begin(spy)
        spy.said.append(f"{spy.name} begins")
        yield
    finally:
        turns.end(spy)


async def one_turn(turns: DeliveryScheduler, spy: Spy) -> None:
    async with turn(turns, spy):
        pass


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_is_alone_has_its_turn_at_once_and_reads_nothing_before() -> None:
    said: list[str] = []
    turns, one = DeliveryScheduler(), Spy("one", said)
    await one_turn(turns, one)
    await one_turn(turns, one)
    assert said == ["one begins", "one begins"]


async def test_who_is_next_in_line_reads_while_the_one_before_delivers() -> None:
    said: list[str] = []
    turns = DeliveryScheduler()
    one, two, three = (Spy(name, said) for name in ("one", "two", "three"))
    async with turn(turns, one):
        others = [asyncio.create_task(one_turn(turns, spy)) for spy in (two, three)]
        await settled()
        assert said == ["one begins", "two reads"]
    await asyncio.gather(*others)
    assert said[2:] == ["three reads", "two collects", "two begins", "three collects", "three begins"]


async def test_who_needs_another_turn_comes_behind_all_who_wait() -> None:
    said: list[str] = []
    turns = DeliveryScheduler()
    one, two = Spy("one", said), Spy("two", said)
    async with turn(turns, one):
        other = asyncio.create_task(one_turn(turns, two))
        await settled()
        await turns.next_slice(one)
        assert said[-2:] == ["two begins", "one collects"]
    await other


async def test_who_needs_another_turn_and_is_alone_reads_on_meanwhile() -> None:
    said: list[str] = []
    turns, one = DeliveryScheduler(), Spy("one", said)
    async with turn(turns, one):
        before = turns.slice_end
        await turns.next_slice(one)
        assert turns.slice_end > before
        await turns.next_slice(one)
    assert said == ["one begins", "one collects", "one reads", "one collects", "one reads"]


@pytest.mark.parametrize("granted", [False, True], ids=["waits", "has just been given it"])
async def test_the_turn_of_who_is_cancelled_is_the_next_one_s(granted: bool) -> None:
    said: list[str] = []
    turns = DeliveryScheduler()
    one, two, three = (Spy(name, said) for name in ("one", "two", "three"))
    async with turn(turns, one):
        gone = asyncio.create_task(one_turn(turns, two))
        other = asyncio.create_task(one_turn(turns, three))
        await settled()
        if not granted:
            gone.cancel()
            await settled()
    if granted:
        gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert gone.cancelled()
    await other
    assert said[-1] == "three begins"
    await one_turn(turns, one)  # nobody holds it


async def test_who_is_cancelled_in_the_line_for_another_turn_takes_nobody_s() -> None:
    said: list[str] = []
    turns = DeliveryScheduler()
    one, two, three = (Spy(name, said) for name in ("one", "two", "three"))

    async def long() -> None:
        async with turn(turns, one):
            lined_up.set()
            await resume.wait()
            await turns.next_slice(one)

    lined_up, resume, leave = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def held() -> None:
        async with turn(turns, two):
            await leave.wait()

    first = asyncio.create_task(long())
    await lined_up.wait()
    second = asyncio.create_task(held())
    await settled()
    resume.set()
    await settled()
    assert said[-1] == "two begins"
    first.cancel()
    third = asyncio.create_task(one_turn(turns, three))
    await settled()
    assert first.cancelled()
    assert "three begins" not in said
    leave.set()
    await asyncio.gather(second, third)
    assert said[-1] == "three begins"
