"""Helpers of the fault tests: create a generation, follow it, and check its final state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from broker import connect
from broker.ids import shard_of
from broker.store import keys
from tests.faults.oracle import Said
from tests.faults.subscriber import CompletionSubscriber, Subscriber
from tests.support import Gateway, gather, request_body, upstream_calls, wait_until

QUICK = {"TOKENCAST_LEASE": "2", "TOKENCAST_HEARTBEAT": "0.5"}
"""Settings with which the death of a process is noticed early, and a pause on a busy machine is not taken for one."""


def prompt(label: str, *, seed: int, length: int, speed: int, more: str = "") -> dict[str, Any]:
    """A request body. The simulated upstream's text for it is `Said(gid, seed, length)`."""
    directive = f"[[sim label={label} seed={seed} length={length} speed={speed} {more}]]"
    return request_body(directive, model="sim", metadata={"label": label})


async def ask(
    api: Gateway, label: str, *, seed: int = 7, length: int = 60, speed: int = 100, more: str = "", **headers: str
) -> Said:
    created = await api.create(prompt(label, seed=seed, length=length, speed=speed, more=more), **headers)
    return Said(created["id"], seed, length)


class Audience:
    """Subscribers of one generation, in both dialects."""

    def __init__(self, said: Said, native: Sequence[Subscriber], completions: Sequence[CompletionSubscriber]) -> None:
        self.said = said
        self.native = native
        self.completions = completions
        self.tasks = [asyncio.create_task(one.run()) for one in (*native, *completions)]

    async def has_text(self, characters: int = 1) -> None:
        """Wait until each subscriber has received this much of the text."""
        await wait_until(lambda: all(len(one.shown.text) >= characters for one in (*self.native, *self.completions)))

    async def has_restarted(self, resets: int = 1) -> None:
        """Wait until each subscriber has text of the attempt after this many resets."""
        await wait_until(lambda: all(one.shown.resets == resets and one.shown.text for one in self.native))

    async def ending(self) -> str:
        """Wait for the end; check that all subscribers have the same ending and no complaint."""
        await gather(*self.tasks)
        subscribers = (*self.native, *self.completions)
        assert [complaint for one in subscribers for complaint in one.shown.complaints] == []
        (ending,) = {one.shown.ending for one in subscribers}
        assert ending is not None
        return ending

    @property
    def resets(self) -> int:
        """The number that was announced to each native subscriber."""
        (resets,) = {one.shown.resets for one in self.native}
        return resets


@asynccontextmanager
async def audience(
    http: aiohttp.ClientSession, gateways: Callable[[], str], said: Said, *, native: int = 3, completions: int = 2
) -> AsyncGenerator[Audience, None]:
    people = Audience(
        said,
        [Subscriber(http, gateways, said) for _ in range(native)],
        [CompletionSubscriber(http, gateways, said) for _ in range(completions)],
    )
    try:
        yield people
    finally:
        for task in people.tasks:
            task.cancel()
        await asyncio.gather(*people.tasks, return_exceptions=True)


@dataclass(frozen=True)
class Stored:
    """A generation as stored in Redis, and its upstream calls."""

    status: str
    attempts: int
    budget: int
    """Attempts that count towards TOKENCAST_MAX_ATTEMPTS."""
    calls: int
    """Calls of the upstream."""


async def stored(redis_url: str, upstream_url: str, said: Said, label: str) -> Stored:
    async with connect(redis_url) as broker:
        status, attempts, budget = await broker.store.redis.execute("HMGET", keys.meta(said.gid), "st", "k", "x")
    return Stored(status.decode(), int(attempts), int(budget), len(await upstream_calls(upstream_url, label)))


async def queue_is_empty(redis_url: str) -> None:
    """Wait until no ticket is waiting and no arq key is left."""
    async with connect(redis_url) as broker:

        async def empty() -> bool:
            return await broker.queue.depth() == 0 and not await broker.queue.redis.execute("KEYS", "arq:*")

        await wait_until(empty, "the queue is empty")


async def is_overdue(redis_url: str, gid: str) -> None:
    """Make a generation's lease overdue, so that the reapers check it now instead of after five seconds."""
    async with connect(redis_url) as broker:
        await broker.store.redis.execute("ZADD", keys.live(shard_of(gid)), "XX", 1, gid)
