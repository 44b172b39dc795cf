"""Places of calls, on the real scripts: limits of tenants and upstreams, and the recovery of places that were lost."""

from __future__ import annotations

import json

import pytest

from broker import Broker
from broker.queue import commands
from broker.queue.commands import Place, UpstreamLimits
from broker.redis.client import Redis
from broker.store import keys
from tests.integration.broker.queue.waiting import LEASE_MS, end, granted, now_ms, pull, put, tenants
from tests.support import wait_until

ANNA, BEN = "anna", "ben"


@pytest.fixture
async def queue(broker: Broker) -> Redis:
    await broker.queue.redis.execute("FLUSHALL")
    return broker.queue.redis


async def test_a_tenant_at_its_limit_delays_nobody(queue: Redis) -> None:
    first, *_ = await put(queue, ANNA, 300)
    others = await put(queue, BEN, 3)
    taken = await granted(queue, 8, tenant_running=1)
    assert taken[0] == first
    assert set(taken[1:]) == {others[0]}
    await end(queue, others[0], BEN)
    assert await granted(queue, 8, tenant_running=1) == [others[1]]


async def test_an_ended_place_goes_to_the_oldest_generation_of_its_tenant(queue: Redis) -> None:
    first, second, third = await put(queue, ANNA, 3)
    assert await granted(queue, tenant_running=1) == [first]
    assert await granted(queue, tenant_running=1) == []
    await end(queue, first, ANNA)
    assert await granted(queue, tenant_running=1) == [second]
    await end(queue, second, ANNA)
    assert await granted(queue, tenant_running=1) == [third]


async def test_the_places_of_a_dead_worker_end_with_their_lease(queue: Redis) -> None:
    dead, alive = await put(queue, ANNA, 2)
    assert await granted(queue, tenant_running=1, lease_ms=500) == [dead]
    pulled = await pull(queue, tenant_running=1, lease_ms=500)
    assert not pulled.tickets
    assert pulled.wait_ms is not None
    assert pulled.wait_ms <= 500

    async def freed() -> list[str]:
        return await granted(queue, tenant_running=1, lease_ms=500)

    assert await wait_until(freed) == [alive]


async def test_renewed_places_do_not_end(queue: Redis) -> None:
    first, _ = await put(queue, ANNA, 2)
    await granted(queue, 1, tenant_running=1, lease_ms=500)
    born = await commands.hold(queue, [Place(first, "default", ANNA, True)], lease_ms=LEASE_MS, born="")
    for name in (keys.places("default"), keys.running(ANNA)):
        assert int(await queue.execute("ZSCORE", name, first)) > await now_ms(queue) + LEASE_MS / 2
    assert await granted(queue, tenant_running=1, born=str(born)) == []


async def test_a_lost_place_is_put_back_by_its_worker(queue: Redis) -> None:
    first, _ = await put(queue, ANNA, 2)
    await granted(queue, 1, tenant_running=1)
    await queue.execute("DEL", keys.places("default"), keys.running(ANNA))
    await commands.hold(queue, [Place(first, "default", ANNA, False)], lease_ms=LEASE_MS, born="")
    assert await granted(queue, tenant_running=1) == []


async def test_a_tenant_with_a_limit_of_its_own(queue: Redis) -> None:
    own = json.dumps({ANNA: [3, 1]}).encode()
    for tenant in (ANNA, BEN):
        await put(queue, tenant, 5)
    taken = await tenants(queue, tenant_running=1, other_tenants=own)
    assert (taken.count(ANNA), taken.count(BEN)) == (3, 1)


async def test_the_open_tenant_has_no_limit(queue: Redis) -> None:
    await put(queue, "default", 5)
    assert len(await granted(queue, tenant_running=1)) == 5


@pytest.mark.parametrize("what", ["all", "u:default", f"t:{ANNA}"])
async def test_nothing_starts_while_it_is_paused(queue: Redis, what: str) -> None:
    waiting = await put(queue, ANNA)
    await queue.execute("HSET", keys.PAUSED, what, 1)
    assert await granted(queue) == []
    await queue.execute("HDEL", keys.PAUSED, what)
    await put(queue, BEN)
    if what.startswith("t:"):
        await end(queue, "gen_none", ANNA)  # its turns return when anything of it ends
    assert set(waiting) < set(await granted(queue))


# --- upstreams ---


async def test_an_upstream_gets_no_more_calls_than_its_limit(queue: Redis) -> None:
    upstreams = [UpstreamLimits("default", concurrency=2, adaptive=False)]
    await put(queue, ANNA, 5)
    first, second = await granted(queue, upstreams=upstreams)
    assert await granted(queue, upstreams=upstreams) == []
    await end(queue, first, ANNA)
    assert len(await granted(queue, upstreams=upstreams)) == 1
    await end(queue, second, ANNA, "none")
    assert len(await granted(queue, upstreams=upstreams)) == 1


async def test_the_lower_limit_of_two_processes_governs(queue: Redis) -> None:
    low, high = ([UpstreamLimits("default", concurrency=n, adaptive=False)] for n in (2, 5))
    await put(queue, ANNA, 8)
    assert len(await granted(queue, 1, upstreams=low)) == 1
    assert len(await granted(queue, upstreams=high)) == 1


async def test_an_operators_limit_governs(queue: Redis) -> None:
    await put(queue, ANNA, 8)
    await queue.execute("HSET", keys.upstream("default"), "omax", 3)
    await queue.execute("EXPIRE", keys.upstream("default"), 60)
    assert len(await granted(queue, upstreams=[UpstreamLimits("default", concurrency=1)])) == 3


async def test_a_rate_is_kept_and_the_pull_tells_when_the_next_call_may_start(queue: Redis) -> None:
    """60 a minute: ten seconds of it at once, then one each second."""
    limited = [UpstreamLimits("default", per_minute=60, adaptive=False)]
    await put(queue, ANNA, 20)
    started = [*await granted(queue, upstreams=limited), *await granted(queue, upstreams=limited)]
    assert 10 <= len(started) <= 12
    pulled = await pull(queue, upstreams=limited)
    assert pulled.wait_ms is not None
    assert 0 < pulled.wait_ms <= 1000


async def test_tokens_are_reserved_and_what_is_not_used_is_returned(queue: Redis) -> None:
    limited = [UpstreamLimits("default", tokens_per_minute=6000, adaptive=False)]
    first, *_ = await put(queue, ANNA, 5, tokens=900)
    assert await granted(queue, upstreams=limited) == [first]
    await end(queue, first, ANNA, reserved=900, used=0)
    assert len(await granted(queue, upstreams=limited)) == 1


async def test_a_call_larger_than_the_rate_runs_alone(queue: Redis) -> None:
    limited = [UpstreamLimits("default", tokens_per_minute=600, adaptive=False)]
    first, _ = await put(queue, ANNA, 2, tokens=50_000)
    assert await granted(queue, upstreams=limited) == [first]


async def test_the_learned_limit_grows_with_accepted_calls(queue: Redis) -> None:
    learning = [UpstreamLimits("default")]
    await put(queue, ANNA, 30)
    first = await granted(queue, upstreams=learning)
    assert len(first) == 4
    for gid in first:
        await commands.begun(queue, gid, "default")
    assert len(await granted(queue, upstreams=learning)) >= 1


async def test_a_refusal_cuts_the_learned_limit_to_what_runs(queue: Redis) -> None:
    learning = [UpstreamLimits("default")]
    await put(queue, ANNA, 30)
    first, second, *others = await granted(queue, upstreams=learning)
    for gid in (first, second):
        await commands.begun(queue, gid, "default")
    for gid in others:
        await end(queue, gid, ANNA, "busy", retry_ms=0)
    assert await queue.execute("HGET", keys.upstream("default"), "L") == b"2"
    assert await granted(queue, upstreams=learning) == []


async def test_a_long_pause_does_not_forget_the_ceiling(queue: Redis) -> None:
    """It begins with one call and grows to what the upstream took before: a call too many costs another pause."""
    learning = [UpstreamLimits("default")]
    await put(queue, ANNA, 30)
    running = await granted(queue, upstreams=learning)
    for gid in running:
        await commands.begun(queue, gid, "default")
    [fifth] = await granted(queue, upstreams=learning)
    await end(queue, fifth, ANNA, "busy", retry_ms=20_000)
    for gid in running:
        await end(queue, gid, ANNA)
    assert await granted(queue, upstreams=learning) == []
    await queue.execute("HSET", keys.upstream("default"), "busy", 1)  # the pause is over
    at_once = [await granted(queue, upstreams=learning)]
    while at_once[-1]:
        for gid in at_once[-1]:
            await commands.begun(queue, gid, "default")
        at_once.append(await granted(queue, upstreams=learning))
    assert [len(some) for some in at_once] == [1, 1, 1, 1, 0]


async def test_a_higher_limit_forgets_the_learned_one(broker: Broker, queue: Redis) -> None:
    learning = [UpstreamLimits("default")]
    await put(queue, ANNA, 30)
    first, *others = await granted(queue, upstreams=learning)
    await commands.begun(queue, first, "default")
    for gid in others:
        await end(queue, gid, ANNA, "busy", retry_ms=0)
    await broker.set_upstream_limits("default", max_concurrency=7)
    await queue.execute("HSET", keys.upstream("default"), "busy", 1)
    assert len(await granted(queue, upstreams=learning)) == 6


async def test_nobody_calls_a_busy_upstream_before_its_time(queue: Redis) -> None:
    first, _ = await put(queue, ANNA, 2)
    await granted(queue, 1)
    await end(queue, first, ANNA, "busy", retry_ms=400)
    pulled = await pull(queue)
    assert not pulled.tickets
    assert pulled.wait_ms is not None
    assert 0 < pulled.wait_ms <= 400

    async def free() -> list[str]:
        return await granted(queue)

    assert await wait_until(free)


async def failed(queue: Redis, count: int, workers: int = 1) -> None:
    for number, gid in enumerate(await put(queue, ANNA, count)):
        await end(queue, gid, ANNA, "fail", worker=f"w{number % workers}")


async def is_open(queue: Redis) -> bool:
    return await queue.execute("HGET", keys.upstream("default"), "circuit") == b"open"


async def test_five_failed_generations_open_the_circuit_and_one_tries_it(queue: Redis) -> None:
    await failed(queue, 4)
    assert not await is_open(queue)
    await failed(queue, 1)
    assert await is_open(queue)
    pulled = await pull(queue)
    assert not pulled.tickets
    assert pulled.wait_ms is not None
    await queue.execute("HSET", keys.upstream("default"), "wait", 0)
    [probe] = await granted(queue)
    assert await granted(queue) == []
    await commands.begun(queue, probe, "default")
    assert not await is_open(queue)
    await end(queue, probe, ANNA)
    assert len(await granted(queue)) >= 1


async def test_one_generation_that_always_fails_does_not_open_it(queue: Redis) -> None:
    [gid] = await put(queue, ANNA)
    for _ in range(20):
        await end(queue, gid, ANNA, "fail")
    assert not await is_open(queue)


async def test_accepted_calls_in_between_keep_it_closed(queue: Redis) -> None:
    for _ in range(3):
        await failed(queue, 4)
        await commands.begun(queue, "gen_accepted", "default")
    assert not await is_open(queue)


async def test_one_worker_of_two_cannot_open_it_alone(queue: Redis) -> None:
    """Its own network may be broken."""
    now = await now_ms(queue)
    await queue.execute("ZADD", keys.WORKERS, now, "w0", now, "w1")
    await queue.execute("EXPIRE", keys.WORKERS, 60)
    await failed(queue, 10)
    assert not await is_open(queue)
    await failed(queue, 1, workers=2)
    await end(queue, "gen_other", ANNA, "fail", worker="w1")
    assert await is_open(queue)


async def test_a_generation_that_failed_the_probe_is_not_the_next_one(queue: Redis) -> None:
    await failed(queue, 5)
    await queue.execute("HSET", keys.upstream("default"), "wait", 0)
    [first] = await granted(queue)
    await end(queue, first, ANNA, "fail")
    assert await is_open(queue)
    await queue.execute("HSET", keys.upstream("default"), "wait", 0, "probed", first)
    [second] = await granted(queue)
    assert second != first


async def other(redis: Redis, gid: str, resource: str = "default", **limits: int) -> str:
    """The upstream that takes another call of a running generation: `other`, then `default`."""
    listed = [UpstreamLimits("other", adaptive=False)._replace(**limits), UpstreamLimits("default", 1, adaptive=False)]
    taken = await commands.take(redis, gid, resource, listed, lease_ms=LEASE_MS, born="", tokens=10)
    return taken.resource


async def places_of(redis: Redis, gid: str) -> list[str]:
    return [one for one in ("default", "other") if await commands.has_place(redis, gid, one)]


async def test_another_call_moves_the_place_to_the_next_upstream(queue: Redis) -> None:
    first, second = await put(queue, ANNA, 2)
    assert await granted(queue, 1, tenant_running=1) == [first]
    assert await other(queue, first, concurrency=1) == "other"
    assert await places_of(queue, first) == ["other"]
    assert await granted(queue, tenant_running=1) == []  # its tenant's place is still its own
    await end(queue, first, ANNA, resource="other")
    assert await granted(queue, tenant_running=1) == [second]


async def test_another_call_stays_at_an_upstream_that_is_full(queue: Redis) -> None:
    first, second = await put(queue, BEN, 2)
    assert await granted(queue) == [first, second]
    assert await other(queue, first, concurrency=1) == "other"
    assert await other(queue, second, concurrency=1) == "default"
    assert await other(queue, second, resource="", concurrency=1) == "default"
    await end(queue, second, "", "busy", retry_ms=0)
    assert await places_of(queue, second) == []
    assert await granted(queue, 1) == []
    assert await other(queue, second, resource="", concurrency=1) == "default"


@pytest.mark.parametrize("why", ["busy", "circuit", "paused", "all paused", "rate"])
async def test_another_call_is_not_sent_to_an_upstream_that_takes_none(queue: Redis, why: str) -> None:
    [gid] = await put(queue, BEN)
    await granted(queue)
    now, state = await now_ms(queue), keys.upstream("other")
    if why == "busy":
        await queue.execute("HSET", state, "busy", now + 9000, "for", 9000)
    elif why == "circuit":
        await queue.execute("HSET", state, "circuit", "open", "since", now, "wait", 1)
    elif why == "rate":
        assert await other(queue, gid, per_minute=1) == "other"
    else:
        await queue.execute("HSET", keys.PAUSED, "all" if why == "all paused" else "u:other", now)
    assert await other(queue, gid, per_minute=1) == ("" if why == "all paused" else "default")


async def test_places_that_may_be_lost_are_not_passed(queue: Redis) -> None:
    """After a loss the other calls of an upstream are unknown until their workers have put them back."""
    [gid] = await put(queue, BEN)
    await granted(queue)
    await queue.execute("FLUSHALL")
    listed = [UpstreamLimits("other", 1, adaptive=False)]
    taken = await commands.take(queue, gid, "default", listed, lease_ms=LEASE_MS, born="1", tokens=10)
    assert taken.resource == ""
    assert taken.born > 1
