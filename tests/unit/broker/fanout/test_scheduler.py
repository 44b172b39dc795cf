"""The delivery scheduler: the order of turns, and when a waiting source prefetches and collects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from broker.fanout.feed import Feed
from broker.fanout.scheduler import DeliveryScheduler


class Spy:
    """A source that records the calls it gets in a list shared by all sources."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.due: dict[Feed, None] = {}
        self.name = name
        self.calls = calls

    def prefetch(self) -> None:
        self.calls.append(f"{self.name} reads")

    def collect(self) -> None:
        self.calls.append(f"{self.name} collects")


@asynccontextmanager
async def turn(scheduler: DeliveryScheduler, spy: Spy) -> AsyncGenerator[None]:
    try:
        await scheduler.begin(spy)
        spy.calls.append(f"{spy.name} begins")
        yield
    finally:
        scheduler.end(spy)


async def one_turn(scheduler: DeliveryScheduler, spy: Spy) -> None:
    async with turn(scheduler, spy):
        pass


async def run_pending() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_single_source_gets_its_turn_immediately_without_a_prefetch() -> None:
    calls: list[str] = []
    scheduler, one = DeliveryScheduler(), Spy("one", calls)
    await one_turn(scheduler, one)
    await one_turn(scheduler, one)
    assert calls == ["one begins", "one begins"]


async def test_the_next_source_prefetches_while_the_current_one_delivers() -> None:
    calls: list[str] = []
    scheduler = DeliveryScheduler()
    one, two, three = (Spy(name, calls) for name in ("one", "two", "three"))
    async with turn(scheduler, one):
        others = [asyncio.create_task(one_turn(scheduler, spy)) for spy in (two, three)]
        await run_pending()
        assert calls == ["one begins", "two reads"]
    await asyncio.gather(*others)
    assert calls[2:] == ["three reads", "two collects", "two begins", "three collects", "three begins"]


async def test_a_source_that_needs_another_slice_queues_after_all_waiting_ones() -> None:
    calls: list[str] = []
    scheduler = DeliveryScheduler()
    one, two = Spy("one", calls), Spy("two", calls)
    async with turn(scheduler, one):
        other = asyncio.create_task(one_turn(scheduler, two))
        await run_pending()
        await scheduler.next_slice(one)
        assert calls[-2:] == ["two begins", "one collects"]
    await other


async def test_a_single_source_that_needs_another_slice_prefetches_in_between() -> None:
    calls: list[str] = []
    scheduler, one = DeliveryScheduler(), Spy("one", calls)
    async with turn(scheduler, one):
        before = scheduler.slice_end
        await scheduler.next_slice(one)
        assert scheduler.slice_end > before
        await scheduler.next_slice(one)
    assert calls == ["one begins", "one collects", "one reads", "one collects", "one reads"]


@pytest.mark.parametrize("granted", [False, True], ids=["waiting", "just granted"])
async def test_the_turn_of_a_cancelled_source_passes_to_the_next(granted: bool) -> None:
    calls: list[str] = []
    scheduler = DeliveryScheduler()
    one, two, three = (Spy(name, calls) for name in ("one", "two", "three"))
    async with turn(scheduler, one):
        gone = asyncio.create_task(one_turn(scheduler, two))
        other = asyncio.create_task(one_turn(scheduler, three))
        await run_pending()
        if not granted:
            gone.cancel()
            await run_pending()
    if granted:
        gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert gone.cancelled()
    await other
    assert calls[-1] == "three begins"
    await one_turn(scheduler, one)  # no source holds the turn


async def test_a_source_cancelled_while_it_waits_for_another_slice_ends_no_other_turn() -> None:
    calls: list[str] = []
    scheduler = DeliveryScheduler()
    one, two, three = (Spy(name, calls) for name in ("one", "two", "three"))

    async def long() -> None:
        async with turn(scheduler, one):
            lined_up.set()
            await resume.wait()
            await scheduler.next_slice(one)

    lined_up, resume, leave = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def held() -> None:
        async with turn(scheduler, two):
            await leave.wait()

    first = asyncio.create_task(long())
    await lined_up.wait()
    second = asyncio.create_task(held())
    await run_pending()
    resume.set()
    await run_pending()
    assert calls[-1] == "two begins"
    first.cancel()
    third = asyncio.create_task(one_turn(scheduler, three))
    await run_pending()
    assert first.cancelled()
    assert "three begins" not in calls
    leave.set()
    await asyncio.gather(second, third)
    assert calls[-1] == "three begins"
