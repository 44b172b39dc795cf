"""Upstreams that refuse calls or are down: generations wait instead of failing, and the limits hold."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import pytest

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.generation import Generation
from broker.store import keys
from tests.faults.crowd import all_ended, ask_many, body, circuit_is_open, places_are_free, routes, split, state_of
from tests.faults.scene import QUICK
from tests.servers.upstream import counting_upstream
from tests.support import gateway, wait_until, worker

MANY = 120


def completed_at_once(ended: Sequence[Generation]) -> bool:
    return all(one.status == "completed" and one.attempt == 1 for one in ended)


async def test_an_upstream_that_takes_four_calls_completes_all(own_redis: EmbeddedRedis) -> None:
    """Without a configured limit: it is learned from the refusals."""
    async with (
        counting_upstream(4, pace=0.01) as upstream,
        worker(own_redis.url, upstream.url),
        worker(own_redis.url, upstream.url),
        connect(own_redis.url) as broker,
    ):
        ended = await all_ended(broker, await ask_many(broker, MANY))
        assert completed_at_once(ended)
        assert upstream.refused <= MANY
        assert upstream.most <= 4
        await places_are_free(broker)


async def test_no_place_leaks_if_workers_and_the_queue_are_lost(own_redis: EmbeddedRedis) -> None:
    async with (
        EmbeddedRedis() as queue,
        counting_upstream(4, pace=0.02) as upstream,
        worker(queue.url, upstream.url, TOKENCAST_STREAMS_URL=own_redis.url, **QUICK) as first,
        worker(queue.url, upstream.url, TOKENCAST_STREAMS_URL=own_redis.url, **QUICK) as second,
        worker(queue.url, upstream.url, TOKENCAST_STREAMS_URL=own_redis.url, **QUICK),
        split(queue, own_redis) as broker,
    ):
        gids = await ask_many(broker, 60)
        await wait_until(lambda: len(upstream.order) >= 15)
        first.send(signal.SIGKILL)
        second.send(signal.SIGKILL)
        await queue.restart()
        ended = await all_ended(broker, gids)
        assert {one.status for one in ended} == {"completed"}
        assert upstream.most <= 4
        assert upstream.refused <= 60
        await places_are_free(broker)


@pytest.mark.parametrize("how", ["503", "no connection", "no answer"])
async def test_generations_wait_for_an_upstream_that_is_down(own_redis: EmbeddedRedis, how: str) -> None:
    async with (
        counting_upstream() as upstream,
        worker(own_redis.url, upstream.url, TOKENCAST_FIRST_TOKEN_TIMEOUT="0.5"),
        connect(own_redis.url) as broker,
    ):
        if how == "503":
            upstream.failing = 503
        elif how == "no answer":
            upstream.hanging = True
        else:
            await upstream.close()
        gids = await ask_many(broker, 8)
        await circuit_is_open(broker)
        upstream.failing, upstream.hanging = None, False
        if how == "no connection":
            await upstream.open()
        assert completed_at_once(await all_ended(broker, gids))
        assert "circuit" not in await state_of(broker)
        await places_are_free(broker)


async def test_a_probe_is_a_single_call(own_redis: EmbeddedRedis) -> None:
    async with (
        counting_upstream() as upstream,
        worker(own_redis.url, upstream.url),
        connect(own_redis.url) as broker,
    ):
        upstream.failing = 503
        gids = await ask_many(broker, 8)
        await circuit_is_open(broker)
        upstream.failing = None
        upstream.answering.clear()
        await wait_until(lambda: upstream.in_flight == 1)
        gids += await ask_many(broker, 2, "later")
        await two_pulls(broker)
        assert upstream.in_flight == upstream.most == 1
        upstream.answering.set()
        assert completed_at_once(await all_ended(broker, gids))


async def two_pulls(broker: Broker) -> None:
    """Wait until workers have looked for tickets twice."""
    for _ in range(2):
        tick = await broker.queue.redis.execute("GET", keys.TICK)

        async def has_moved(tick: bytes = tick) -> bool:
            return await broker.queue.redis.execute("GET", keys.TICK) != tick

        await wait_until(has_moved)


async def test_a_request_that_always_fails_fails_alone(own_redis: EmbeddedRedis) -> None:
    async with (
        counting_upstream() as upstream,
        gateway(own_redis.url) as api,
        worker(own_redis.url, upstream.url),
        connect(own_redis.url) as broker,
    ):
        upstream.poisonous = {"bad"}
        bad = (await broker.enqueue(body("bad"))).id
        good: list[str] = []
        while not (await broker.store.state(bad, "default")).ended:
            good += await ask_many(broker, 1, f"good{len(good)}-")
            await all_ended(broker, good[-1:])
        failed = await broker.get(bad)
        assert (failed.status, failed.attempt, failed.error and failed.error["code"]) == ("failed", 1, "upstream_error")
        assert upstream.calls["bad"] == 5
        assert completed_at_once(await all_ended(broker, good))
        assert [frame.event for frame in await api.events(bad)] == ["created", "waiting", "started", "failed"]


async def test_a_worker_without_a_route_closes_nothing_for_others(own_redis: EmbeddedRedis) -> None:
    async with (
        counting_upstream() as upstream,
        counting_upstream() as unreachable,
        worker(own_redis.url, upstream.url),
        worker(own_redis.url, unreachable.url) as lost,
        connect(own_redis.url) as broker,
    ):
        await unreachable.close()
        gids = await ask_many(broker, 40)
        assert completed_at_once(await all_ended(broker, gids))
        await lost.says("every call of this worker fails|ready")
        assert "circuit" not in await state_of(broker)


async def test_a_saturated_upstream_does_not_delay_another(own_redis: EmbeddedRedis) -> None:
    async with counting_upstream() as slow, counting_upstream() as quick:
        slow.gate.clear()
        given = routes(slow=(slow, "slow"), quick=(quick, "quick"))
        async with (
            worker(own_redis.url, slow.url, TOKENCAST_UPSTREAMS=given),
            split(own_redis, own_redis, upstreams=given) as broker,
        ):
            waiting = [(await broker.enqueue(body(f"s{n}", "slow"))).id for n in range(30)]
            await wait_until(lambda: slow.in_flight > 0)
            done = [(await broker.enqueue(body(f"q{n}", "quick"))).id for n in range(10)]
            assert completed_at_once(await all_ended(broker, done))
            assert not any([(await broker.get(gid)).ended for gid in waiting])
            slow.gate.set()
            assert completed_at_once(await all_ended(broker, waiting))
