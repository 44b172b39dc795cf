"""The limits that an upstream tells, as its state shows them."""

from __future__ import annotations

import pytest

from broker import Broker
from broker.queue import commands
from broker.queue.commands import ToldLimit, ToldLimits, UpstreamLimits
from broker.queue.upstreams import UpstreamState, UpstreamStates
from broker.redis.client import Redis
from broker.store import keys
from tests.integration.broker.queue.waiting import granted, now_ms, put

MINUTE, DAY = 60_000, 86_400_000


@pytest.fixture
async def queue(broker: Broker) -> Redis:
    await broker.queue.redis.execute("FLUSHALL")
    return broker.queue.redis


async def state(queue: Redis) -> UpstreamState:
    found = await UpstreamStates(queue).read(["default"], await now_ms(queue) / 1000)
    return found["default"]


async def tell(queue: Redis, limits: ToldLimits, configured: int = 0) -> UpstreamState:
    """One call, whose response tells the limits; the state after it."""
    upstream = UpstreamLimits("default", 0, configured, adaptive=False)
    await put(queue, "anna", 4)
    [gid] = await granted(queue, 1, upstreams=[upstream])
    await commands.begun(queue, gid, "default", told=limits)
    return await state(queue)


async def test_told_limits_are_shown(queue: Redis) -> None:
    told = await tell(queue, ToldLimits(ToldLimit(60, 59, 1_000, MINUTE), ToldLimit(1_000, 900, 100, 1_000)))
    assert (told.requests_per_minute, told.tokens_per_minute) == (60, 60_000)
    assert told.told_limits == ["requests_per_minute", "tokens_per_minute"]
    assert told.busy_until is None


@pytest.mark.parametrize(("configured", "shown", "names"), [(30, 30, []), (600, 60, ["requests_per_minute"])])
async def test_the_lower_one_of_a_configured_and_a_told_limit_counts(
    queue: Redis, configured: int, shown: int, names: list[str]
) -> None:
    told = await tell(queue, ToldLimits(ToldLimit(60, 59, 1_000, MINUTE)), configured)
    assert (told.requests_per_minute, told.told_limits) == (shown, names)


async def test_the_limit_of_a_day_is_no_rate(queue: Redis) -> None:
    told = await tell(queue, ToldLimits(ToldLimit(14_400, 14_399, 6_000, DAY)))
    assert (told.requests_per_minute, told.told_limits) == (None, [])
    assert len(await granted(queue)) == 3


async def test_an_upstream_of_which_nothing_remains_is_busy_until_the_reset(queue: Redis) -> None:
    told = await tell(queue, ToldLimits(ToldLimit(60, 0, 20_000, MINUTE)))
    assert told.busy_until == pytest.approx(await now_ms(queue) / 1000 + 20, abs=5)
    assert told.refused == 0
    assert await granted(queue) == []


async def test_an_upstream_whose_told_limit_is_used_up_is_busy_for_a_moment(queue: Redis) -> None:
    told = await tell(queue, ToldLimits(ToldLimit(3, 0, None, MINUTE)))
    assert told.busy_until == pytest.approx(await now_ms(queue) / 1000 + 20, abs=5)


async def test_a_limit_that_was_told_long_ago_is_not_shown(queue: Redis) -> None:
    await tell(queue, ToldLimits(ToldLimit(60, 59, 1_000, MINUTE)))
    await queue.execute("HSET", keys.upstream("default"), "r.told", await now_ms(queue) - 301_000)
    assert (await state(queue)).requests_per_minute is None
