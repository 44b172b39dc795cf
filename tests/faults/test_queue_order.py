"""The order of waiting generations: priorities, tenants in turns, schedules, and what readers see of it."""

from __future__ import annotations

import asyncio

import pytest

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.store import keys
from tests.faults.crowd import all_ended, ask_many, body, is_refused, routes, split
from tests.faults.scene import QUICK
from tests.servers.upstream import counting_upstream
from tests.support import gateway, wait_until, worker

ONE_AT_A_TIME = {"TOKENCAST_SLOTS": "1"}


async def test_tenants_take_turns_although_one_floods(own_redis: EmbeddedRedis) -> None:
    async with counting_upstream() as upstream, connect(own_redis.url) as broker:
        flood = await ask_many(broker, 30, "flood", tenant="flood")
        small = await ask_many(broker, 10, "small", tenant="small")
        async with worker(own_redis.url, upstream.url, **ONE_AT_A_TIME):
            await all_ended(broker, flood, "flood")
            await all_ended(broker, small, "small")
        shares = [sum(prompt.startswith("small") for prompt in upstream.order[:n]) for n in range(2, 22, 2)]
        assert shares == list(range(1, 11))


async def test_a_flood_of_the_first_priority_leaves_the_turns_of_the_others(own_redis: EmbeddedRedis) -> None:
    async with counting_upstream() as upstream, connect(own_redis.url) as broker:
        first = await ask_many(broker, 10, "a", tenant="a")
        flood = await ask_many(broker, 15, "c", tenant="c", priority=1)
        second = await ask_many(broker, 10, "b", tenant="b")
        async with worker(own_redis.url, upstream.url, **ONE_AT_A_TIME):
            for tenant, gids in {"a": first, "b": second, "c": flood}.items():
                await all_ended(broker, gids, tenant)
        tenants = [prompt[0] for prompt in upstream.order]
        assert tenants[:15] == ["c"] * 15
        assert [tenants[15 : 15 + n].count("b") for n in range(2, 22, 2)] == list(range(1, 11))


async def test_the_last_priority_does_not_starve(own_redis: EmbeddedRedis) -> None:
    """It has a turn after the time of TOKENCAST_QUEUE_AGEING, whatever goes before it."""
    async with (
        counting_upstream(pace=0.05) as upstream,
        connect(own_redis.url) as broker,
        worker(own_redis.url, upstream.url, **ONE_AT_A_TIME, TOKENCAST_QUEUE_AGEING="0.5"),
    ):
        last = await ask_many(broker, 1, "last", priority=5)
        first = await ask_many(broker, 20, "first", priority=1)
        await all_ended(broker, [*first, *last])
        assert upstream.order[-1] != "last0"


async def test_a_slow_first_token_on_the_chat_route_is_not_cut(own_redis: EmbeddedRedis) -> None:
    """The limit of waiting does not bound a call under way."""
    async with (
        counting_upstream() as upstream,
        gateway(own_redis.url, TOKENCAST_RETRY_BUDGET="0.3") as api,
        worker(own_redis.url, upstream.url),
        connect(own_redis.url) as broker,
    ):
        upstream.answering.clear()
        answer = asyncio.create_task(api.http.post("/v1/chat/completions", json=body("slow")))
        await wait_until(lambda: upstream.in_flight == 1)
        began = await redis_time(broker)

        async def is_over() -> bool:
            return await redis_time(broker) > began + 1

        await wait_until(is_over)
        upstream.answering.set()
        assert (await answer).status_code == 200
        assert upstream.calls["slow"] == 1


async def redis_time(broker: Broker) -> float:
    seconds, micros = await broker.queue.redis.execute("TIME")
    return int(seconds) + int(micros) / 1e6


async def test_readers_see_one_wait_for_each_reason(own_redis: EmbeddedRedis) -> None:
    async with (
        counting_upstream(0, retry_after="0") as upstream,
        gateway(own_redis.url) as api,
        worker(own_redis.url, upstream.url),
    ):
        created = await api.create(body("refused"))
        await is_refused(upstream, 4)
        upstream.capacity = 1
        events = await api.events(created["id"])
        created_event, waiting, started, *chunks, completed = [frame for frame in events if frame.event]
        assert (created_event.event, waiting.event, started.event) == ("created", "waiting", "started")
        assert ({frame.event for frame in chunks}, completed.event) == ({"chunk"}, "completed")
        assert waiting.json["reason"] == "upstream_busy"
        assert started.json["attempt"] == 1


@pytest.mark.parametrize("why", ["down", "full"])
async def test_the_next_upstream_takes_over(own_redis: EmbeddedRedis, why: str) -> None:
    async with counting_upstream() as first, counting_upstream() as second:
        given = routes(first=(first, "m"), second=(second, "m"))
        async with (
            split(own_redis, own_redis, upstreams=given) as broker,
            gateway(own_redis.url, TOKENCAST_UPSTREAMS=given) as api,
            worker(own_redis.url, first.url, TOKENCAST_UPSTREAMS=given),
        ):
            held: list[str] = []
            if why == "down":
                first.failing = 503
            else:
                first.answering.clear()
                held = await ask_many(broker, 4, "held")
                await wait_until(lambda: first.in_flight == 4)
            created = await api.create(body("moved"))
            assert (await api.ended(created["id"]))["upstream"] == "second"
            (started,) = [frame.json for frame in await api.events(created["id"]) if frame.event == "started"]
            assert started == {"attempt": 1, "upstream": "second"}
            first.answering.set()
            assert {one.upstream for one in await all_ended(broker, held)} <= {"first"}


@pytest.mark.parametrize("end", ["cancel", "delete"])
@pytest.mark.parametrize("scheduled", [False, True], ids=["waiting", "scheduled"])
async def test_a_generation_that_waits_can_be_ended(own_redis: EmbeddedRedis, end: str, scheduled: bool) -> None:
    async with connect(own_redis.url) as broker:
        (gid,) = await ask_many(broker, 1, delay_seconds=3600 if scheduled else None)
        assert await broker.queue.depth() == 1
        if end == "cancel":
            assert (await broker.cancel(gid)).status == "cancelled"
        else:
            await broker.delete(gid)
        assert await broker.queue.depth() == 0
        assert await broker.queue.redis.execute("EXISTS", keys.DEPTH, keys.WAITING_COUNTS, keys.LATER) == 0


async def test_a_wait_that_is_too_long_fails(own_redis: EmbeddedRedis) -> None:
    async with gateway(own_redis.url, **QUICK) as api, connect(own_redis.url) as broker:
        (gid,) = await ask_many(broker, 1, queue_timeout=0.5)
        failed = await api.ended(gid)
        assert failed["status"] == "failed"
        assert failed["error"]["code"] == "queue_timeout"


async def test_a_wait_for_a_busy_upstream_ends_with_its_code(own_redis: EmbeddedRedis) -> None:
    """Of a generation that was never called. If the upstream takes no call before its deadline, the caller is told at
    once when to try again."""
    async with (
        counting_upstream(0, retry_after="60") as upstream,
        gateway(own_redis.url) as api,
        worker(own_redis.url, upstream.url),
    ):
        await api.create(body("refused"))

        async def is_known() -> bool:
            return (await api.http.get("/v1/upstreams")).json()["data"][0]["retry_at"] is not None

        await wait_until(is_known)
        answer = await api.http.post("/v1/chat/completions", json=body("late", "m", queue_timeout=50))
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "upstream_rate_limited")
        assert 0 < int(answer.headers["retry-after"]) <= 60
        assert upstream.calls["late"] == 0
        late = (await api.http.get(f"/v1/generations/{answer.headers['x-generation-id']}")).json()
        assert late["ended_at"] < late["created_at"] + 50


@pytest.mark.parametrize("field", ["delay_seconds", "run_at"])
async def test_a_scheduled_generation_runs_at_its_time(own_redis: EmbeddedRedis, field: str) -> None:
    async with (
        counting_upstream() as upstream,
        gateway(own_redis.url) as api,
        worker(own_redis.url, upstream.url),
        connect(own_redis.url) as broker,
    ):
        at = 1.5 if field == "delay_seconds" else await redis_time(broker) + 1.5
        created = await api.create(body("later", "m", **{field: at}))
        other = await api.create(body("now"))
        assert (await api.ended(other["id"]))["status"] == "completed"
        record = await api.ended(created["id"])
        assert record["status"] == "completed"
        assert record["started_at"] >= record["run_at"] > record["created_at"]
        assert upstream.order == ["now", "later"]


async def test_a_queue_that_lost_its_data_is_filled_again(own_redis: EmbeddedRedis) -> None:
    async with (
        EmbeddedRedis() as queue,
        counting_upstream() as upstream,
        worker(queue.url, upstream.url, TOKENCAST_STREAMS_URL=own_redis.url, **QUICK),
        split(queue, own_redis) as broker,
    ):
        upstream.gate.clear()
        gids = await ask_many(broker, 30)
        await wait_until(lambda: upstream.in_flight >= 4)
        await broker.queue.redis.execute("FLUSHALL")
        upstream.gate.set()
        ended = await all_ended(broker, gids)
        assert {(one.status, one.attempt) for one in ended} == {("completed", 1)}
        assert sum(upstream.calls.values()) == len(gids)
