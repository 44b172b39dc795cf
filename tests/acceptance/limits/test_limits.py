"""Limits per tenant: what is refused, how, and that nobody else feels it."""

from __future__ import annotations

import asyncio
import hashlib
import re
import signal
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import httpx2
import pytest

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.ids import shard_of
from broker.queue.quotas import ADMIT
from broker.queue.tickets import ENQUEUE
from broker.redis.client import Script
from broker.store import keys
from broker.store.commands import CREATE
from tests.faults.scene import QUICK
from tests.support import (
    Frame,
    Gateway,
    Service,
    Writer,
    gateway,
    gather,
    request_body,
    upstream_calls,
    wait_until,
    worker,
)

KEYS = ",".join(f"{t}:{hashlib.sha256(f'key-{t}'.encode()).hexdigest()}" for t in ("anna", "ben"))
ANNA, BEN = {"authorization": "Bearer key-anna"}, {"authorization": "Bearer key-ben"}
KEYED = {"TOKENCAST_API_KEYS": KEYS}
OFF = {
    f"TOKENCAST_{name}": "0"
    for name in (
        "TENANT_RUNNING",
        "TENANT_QUEUED",
        "TENANT_PER_MINUTE",
        "TENANT_SUBSCRIBERS",
        "GENERATION_SUBSCRIBERS",
    )
}


@asynccontextmanager
async def limited(url: str, **limits: int | str) -> AsyncGenerator[Gateway, None]:
    """A gateway with keys, and with these limits only."""
    variables = {**OFF, **{f"TOKENCAST_{name.upper()}": str(most) for name, most in limits.items()}}
    async with gateway(url, TOKENCAST_API_KEYS=KEYS, **variables, **QUICK) as started:
        yield started


@asynccontextmanager
async def working(url: str, sim: str, running: int, slots: int = 10) -> AsyncGenerator[Service, None]:
    variables = {**OFF, "TOKENCAST_TENANT_RUNNING": str(running), "TOKENCAST_SLOTS": str(slots), **QUICK}
    async with worker(url, sim, **variables) as started:
        yield started


async def ask(api: Gateway, path: str = "/v1/generations", **headers: str) -> httpx2.Response:
    return await api.http.post(path, json=request_body(), headers=headers)


def refused(response: httpx2.Response, longest: int) -> None:
    """As an SDK understands it: it waits, and asks again."""
    assert response.status_code == 429, response.text
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(response.headers["retry-after"]) <= longest
    assert "x-should-retry" not in response.headers


def accepted(response: httpx2.Response, status: int = 202) -> str:
    assert response.status_code == status, response.text
    return response.json()["id"]


async def early_in_a_minute(broker: Broker) -> None:
    async def early() -> bool:
        return int((await broker.store.redis.execute("TIME"))[0]) % 60 < 55

    await wait_until(early)


async def test_creations_per_minute(redis: EmbeddedRedis, broker: Broker) -> None:
    async with limited(redis.url, tenant_per_minute=3) as api:
        await early_in_a_minute(broker)
        for number in (1, 2, 3):
            accepted(await ask(api, **ANNA, **{"idempotency-key": f"minute-{number}"}))
            accepted(await ask(api, **ANNA, **{"idempotency-key": f"minute-{number}"}), 200)  # no creation
        for path in ("/v1/generations", "/v1/chat/completions"):
            refused(await ask(api, path, **ANNA), 60)
        accepted(await ask(api, **ANNA, **{"idempotency-key": "minute-1"}), 200)
        of_ben = accepted(await ask(api, **BEN))
        await api.http.delete(f"/v1/generations/{of_ben}", headers=BEN)


async def test_waiting_generations(redis: EmbeddedRedis) -> None:
    """No worker takes them. Whoever cancels or deletes one may have another."""
    async with limited(redis.url, tenant_queued=2) as api:
        first = accepted(await ask(api, **ANNA, **{"idempotency-key": "waiting"}))
        accepted(await ask(api, **ANNA, **{"idempotency-key": "waiting"}), 200)
        second = accepted(await ask(api, **ANNA))
        for path in ("/v1/generations", "/v1/chat/completions"):
            refused(await ask(api, path, **ANNA), 5)
        accepted(await ask(api, **ANNA, **{"idempotency-key": "waiting"}), 200)
        of_ben = accepted(await ask(api, **BEN))
        await api.http.delete(f"/v1/generations/{of_ben}", headers=BEN)
        await api.http.post(f"/v1/generations/{first}/cancel", headers=ANNA)
        third = accepted(await ask(api, **ANNA))
        refused(await ask(api, **ANNA), 5)
        await api.http.delete(f"/v1/generations/{second}", headers=ANNA)
        fourth = accepted(await ask(api, **ANNA))
        for gid in (third, fourth):
            await api.http.delete(f"/v1/generations/{gid}", headers=ANNA)


async def test_a_tenant_has_limits_of_its_own(own_redis: EmbeddedRedis) -> None:
    own = '{"ben": {"queued": 1, "per_minute": 3, "subscribers": 1, "bytes": 0}}'
    async with (
        connect(own_redis.url) as broker,
        limited(own_redis.url, tenant_queued=2, tenant_bytes=1, tenants=own) as api,
        AsyncExitStack() as stack,
    ):
        await early_in_a_minute(broker)
        first = accepted(await ask(api, **BEN))
        refused(await ask(api, **BEN), 5)
        streams = [api.stream("GET", f"/v1/generations/{first}/events", headers=BEN) for _ in range(2)]
        assert (await anext(await stack.enter_async_context(aclosing(streams[0])))).event == "created"
        [told] = [frame async for frame in streams[1]]
        assert b"Subscriber limit reached: 1 streams" in told.raw
        await api.http.delete(f"/v1/generations/{first}", headers=BEN)
        for _ in range(2):  # its stored bytes are not limited
            gid = accepted(await ask(api, **BEN))
            await api.http.delete(f"/v1/generations/{gid}", headers=BEN)
        refused(await ask(api, **BEN), 60)
        of_anna = accepted(await ask(api, **ANNA))
        refused(await ask(api, **ANNA), 60)  # hers are
        await api.http.delete(f"/v1/generations/{of_anna}", headers=ANNA)


async def test_a_conflict_takes_no_place(redis: EmbeddedRedis) -> None:
    async with limited(redis.url, tenant_queued=2) as api:
        headers = {**BEN, "idempotency-key": "conflict"}
        gid = accepted(await ask(api, **headers))
        for _ in range(3):
            other = await api.http.post("/v1/generations", json=request_body("Something else."), headers=headers)
            assert other.status_code == 422
        more = accepted(await ask(api, **BEN))
        for one in (gid, more):
            await api.http.delete(f"/v1/generations/{one}", headers=BEN)


async def test_without_keys_nobody_is_limited(redis: EmbeddedRedis) -> None:
    async with gateway(redis.url, **dict.fromkeys(OFF, "1")) as api, AsyncExitStack() as stack:
        for _ in range(3):
            gid = accepted(await ask(api))
        for _ in range(3):
            frames = await stack.enter_async_context(aclosing(api.follow(gid)))
            assert (await anext(frames)).event == "created"


async def test_what_cannot_be_counted_is_not_accepted(redis: EmbeddedRedis, own_redis: EmbeddedRedis) -> None:
    """While the queue's Redis is away. A caller may try again: nothing was created."""
    keyed = {"TOKENCAST_API_KEYS": KEYS, "TOKENCAST_STREAMS_URL": redis.url}
    async with gateway(own_redis.url, **keyed) as api:
        before = (await api.http.get("/v1/generations", headers=ANNA)).json()["data"]
        own_redis.kill()
        response = await ask(api, **ANNA)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "storage_unavailable")
        assert "retry-after" in response.headers
        assert "x-should-retry" not in response.headers
        assert (await api.http.get("/v1/generations", headers=ANNA)).json()["data"] == before


@pytest.mark.parametrize(("variables", "scripts"), [({}, [CREATE, ENQUEUE]), (KEYED, [ADMIT, CREATE, ENQUEUE])])
async def test_a_creation_costs_a_round_trip_a_script(
    redis: EmbeddedRedis, variables: dict[str, str], scripts: list[Script]
) -> None:
    async with gateway(redis.url, **variables) as api, connect(redis.url) as broker:
        await ask(api, **BEN)  # the scripts are loaded
        reader, writer = await asyncio.open_connection("127.0.0.1", redis.port, limit=1 << 20)
        writer.write(b"MONITOR\r\n")
        assert await reader.readline() == b"+OK\r\n"
        gid = accepted(await ask(api, **BEN))
        await broker.queue.redis.execute("ECHO", "over")
        seen = (await reader.readuntil(b'"over"\r\n')).decode().splitlines()
        writer.close()
        await api.http.delete(f"/v1/generations/{gid}", headers=BEN)
    assert [line.split('"')[3] for line in seen if gid in line and " lua]" not in line] == [s.sha for s in scripts]


# --- what runs at once ---------------------------------------------------------------------------------------


def silent(label: str) -> dict[str, Any]:
    return request_body(f"[[sim label={label} fault=mute]]", "sim")


async def ask_for(api: Gateway, body: dict[str, Any], headers: dict[str, str]) -> str:
    return (await api.create(body, **headers))["id"]


async def status(api: Gateway, gid: str, headers: dict[str, str]) -> str:
    return (await api.http.get(f"/v1/generations/{gid}", headers=headers)).json()["status"]


async def until(api: Gateway, wanted: str, gid: str, headers: dict[str, str]) -> None:
    async def so() -> bool:
        return await status(api, gid, headers) == wanted

    await wait_until(so, f"{gid} is not {wanted}")


async def end(api: Gateway, *gids: str) -> None:
    for gid in gids:
        await api.http.post(f"/v1/generations/{gid}/cancel", headers=ANNA)


async def parked(redis: EmbeddedRedis, count: int) -> None:
    async with connect(redis.url) as broker:

        async def so() -> bool:
            execute = broker.queue.redis.execute
            return await broker.queue.depth() == 0 and await execute("ZCARD", keys.parked("anna")) == count

        await wait_until(so)


async def looked_at(redis: EmbeddedRedis, gid: str) -> None:
    """By a reaper, which writes tickets for what waits."""
    async with connect(redis.url) as broker:
        execute = broker.store.redis.execute
        await execute("ZADD", keys.live(shard_of(gid)), "XX", 1, gid)

        async def so() -> bool:
            return float(await execute("ZSCORE", keys.live(shard_of(gid)), gid)) > 1

        await wait_until(so)


async def test_who_is_at_the_limit_waits_and_the_others_go_past(own_redis: EmbeddedRedis, sim: str) -> None:
    async with limited(own_redis.url, tenant_running=2) as api, working(own_redis.url, sim, 2):
        first, second = [await ask_for(api, silent("at-the-limit"), ANNA) for _ in range(2)]
        for running in (first, second):
            await until(api, "in_progress", running, ANNA)
        third, fourth, fifth = [await ask_for(api, silent("at-the-limit"), ANNA) for _ in range(3)]
        await parked(own_redis, 3)
        of_ben = await ask_for(api, request_body("[[sim length=1 speed=1000]]", "sim"), BEN)
        await until(api, "completed", of_ben, BEN)
        await looked_at(own_redis, fifth)
        await parked(own_redis, 3)
        await end(api, fourth, second)
        await until(api, "in_progress", third, ANNA)  # the oldest one
        assert await status(api, fifth, ANNA) == "queued"
        await end(api, first)
        await until(api, "in_progress", fifth, ANNA)
        await parked(own_redis, 0)
        await end(api, third, fifth)


async def test_never_more_than_the_limit_and_nothing_is_left_waiting(own_redis: EmbeddedRedis, sim: str) -> None:
    """Two workers with slots for all of them, and a flood that is parked and queued again the whole time."""
    body = request_body("[[sim label=crowd length=3 speed=100]]", "sim")
    async with (
        limited(own_redis.url, tenant_running=3) as api,
        working(own_redis.url, sim, 3),
        working(own_redis.url, sim, 3),
    ):
        gids = [await ask_for(api, body, ANNA) for _ in range(60)]
        await gather(*(until(api, "completed", gid, ANNA) for gid in gids))
    calls = await upstream_calls(sim, "crowd")
    moments = sorted([(call["started_at"], 1) for call in calls] + [(call["ended_at"], -1) for call in calls])
    at_once = [sum(change for _, change in moments[: n + 1]) for n in range(len(moments))]
    assert (len(calls), max(at_once)) == (60, 3)


async def test_places_outlive_the_queue_s_redis_and_not_their_worker(own_redis: EmbeddedRedis, sim: str) -> None:
    """They are written again where they were lost; those of a worker that was killed end with its lease."""
    async with limited(own_redis.url, tenant_running=1) as api, connect(own_redis.url) as broker:
        async with working(own_redis.url, sim, 1) as first_worker:
            first = await ask_for(api, silent("outlived"), ANNA)
            await until(api, "in_progress", first, ANNA)
            await broker.queue.redis.execute("DEL", keys.running("anna"))
            await wait_until(lambda: broker.queue.redis.execute("ZCARD", keys.running("anna")))
            second = await ask_for(api, silent("outlived"), ANNA)
            await parked(own_redis, 1)
            first_worker.send(signal.SIGKILL)
            await first_worker.wait()
            await end(api, first)  # nobody gives its place back
            await wait_until(lambda: _no_place(broker))
        async with working(own_redis.url, sim, 1):
            # The reaper looks at a waiting one every thirty seconds; it need not be waited for.
            await broker.store.redis.execute("ZADD", keys.live(shard_of(second)), "XX", 1, second)
            await until(api, "in_progress", second, ANNA)
            await end(api, second)


async def _no_place(broker: Broker) -> bool:
    now = int((await broker.queue.redis.execute("TIME"))[0]) * 1000
    return await broker.queue.redis.execute("ZCOUNT", keys.running("anna"), now, "+inf") == 0


async def test_a_handover_keeps_its_place(own_redis: EmbeddedRedis, sim: str) -> None:
    """A deploy: what ran goes on before what waits."""
    async with limited(own_redis.url, tenant_running=1) as api:
        async with working(own_redis.url, sim, 1) as leaving:
            first = await ask_for(api, silent("handed-over"), ANNA)
            await until(api, "in_progress", first, ANNA)
            second = await ask_for(api, silent("handed-over"), ANNA)
            await parked(own_redis, 1)
            await leaving.stop()

        async with working(own_redis.url, sim, 1):
            await until(api, "in_progress", first, ANNA)
            assert await status(api, second, ANNA) == "queued"
            await end(api, first, second)


# --- who reads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limits", [{"tenant_subscribers": 2}, {"generation_subscribers": 2}], ids=["of a tenant", "of a generation"]
)
async def test_subscribers(redis: EmbeddedRedis, broker: Broker, limits: dict[str, int]) -> None:
    """A browser's stream is told to come back, and may when somebody has left; an OpenAI client's is refused."""
    async with limited(redis.url, **limits) as api, AsyncExitStack() as stack:
        writer = await Writer(broker.store.redis, accepted(await ask(api, **ANNA))).claim()
        await writer.append("one")
        events = f"/v1/generations/{writer.gid}/events"
        first, second = [api.stream("GET", events, headers=ANNA) for _ in range(2)]
        await stack.enter_async_context(aclosing(second))
        for frames in (first, second):
            assert (await anext(frames)).event == "created"
        [told] = [frame async for frame in api.stream("GET", events, headers=ANNA)]
        assert re.fullmatch(rb"retry: \d+\n: Subscriber limit reached: 2 .*\.", told.raw)
        refused(await api.http.get(f"/v1/chat/completions/{writer.gid}?stream=true", headers=ANNA), 5)
        assert (await api.http.get(events, headers={**ANNA, "accept": "application/json"})).status_code == 200
        assert (await api.http.head(events, headers=ANNA)).status_code == 200
        await first.aclose()

        async def let_in() -> bool:
            async with aclosing(api.stream("GET", events, headers=ANNA)) as frames:
                return (await anext(frames)).event == "created"

        await wait_until(let_in)
        await writer.finish()


async def test_streams_of_several_and_of_all_count_too(redis: EmbeddedRedis) -> None:
    async with limited(redis.url, tenant_subscribers=2) as api, AsyncExitStack() as stack:
        one, other, third = [accepted(await ask(api, **ANNA)) for _ in range(3)]

        def several(*gids: str) -> AsyncIterator[Frame]:
            query = "&".join(f"generation={gid}" for gid in gids)
            return api.stream("GET", f"/v1/events?{query}", headers=ANNA)

        async def told_to_come_back(frames: AsyncIterator[Frame]) -> bool:
            return [frame.raw.startswith(b"retry: ") async for frame in frames] == [True]

        assert await told_to_come_back(several(one, other, third))
        frames = await stack.enter_async_context(aclosing(several(one)))  # what was refused has left nothing behind
        assert (await anext(frames)).event == "created"
        watching = await stack.enter_async_context(aclosing(api.stream("GET", "/v1/activity", headers=ANNA)))
        assert (await anext(watching)).event == "created"
        assert await told_to_come_back(several(other))
        assert await told_to_come_back(api.stream("GET", "/v1/activity", headers=ANNA))


async def test_nothing_is_paid_for_that_nobody_may_read(redis: EmbeddedRedis, broker: Broker) -> None:
    async with limited(redis.url, tenant_subscribers=1) as api, AsyncExitStack() as stack:
        gid = accepted(await ask(api, **BEN))
        frames = await stack.enter_async_context(
            aclosing(api.stream("GET", f"/v1/generations/{gid}/events", headers=BEN))
        )
        assert (await anext(frames)).event == "created"
        refused(await ask(api, "/v1/chat/completions", **BEN), 5)
        listed = (await api.http.get("/v1/generations", headers=BEN)).json()["data"]
        assert gid == listed[0]["id"]
