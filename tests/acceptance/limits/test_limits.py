"""Limits per tenant: the refused requests, the form of the refusal, and the independence of other tenants."""

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
from broker.queue.commands import OFFER
from broker.queue.quotas import ADMIT
from broker.redis.client import Script
from broker.store import keys
from broker.store.commands import CREATE
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
LEASE = {"TOKENCAST_LEASE": "3", "TOKENCAST_HEARTBEAT": "0.5"}
"""A lease that outlasts any pause of a living worker on a busy machine: a place that ends too early is given away."""
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
async def gateway_with_limits(url: str, **limits: int | str) -> AsyncGenerator[Gateway, None]:
    """A gateway with keys and only these limits."""
    variables = {**OFF, **{f"TOKENCAST_{name.upper()}": str(most) for name, most in limits.items()}}
    async with gateway(url, TOKENCAST_API_KEYS=KEYS, **variables, **LEASE) as started:
        yield started


@asynccontextmanager
async def worker_with_limit(url: str, sim: str, running: int, slots: int = 10) -> AsyncGenerator[Service, None]:
    variables = {**OFF, "TOKENCAST_TENANT_RUNNING": str(running), "TOKENCAST_SLOTS": str(slots), **LEASE}
    async with worker(url, sim, **variables) as started:
        yield started


async def post(api: Gateway, path: str = "/v1/generations", **headers: str) -> httpx2.Response:
    return await api.http.post(path, json=request_body(), headers=headers)


def assert_refused(response: httpx2.Response, longest: int) -> None:
    """In a form that makes an SDK wait and repeat the request."""
    assert response.status_code == 429, response.text
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(response.headers["retry-after"]) <= longest
    assert "x-should-retry" not in response.headers


def accepted_id(response: httpx2.Response, status: int = 202) -> str:
    assert response.status_code == status, response.text
    return response.json()["id"]


async def wait_for_first_part_of_minute(broker: Broker) -> None:
    async def is_first_part() -> bool:
        return int((await broker.store.redis.execute("TIME"))[0]) % 60 < 55

    await wait_until(is_first_part)


async def test_the_limit_of_creations_per_minute(redis: EmbeddedRedis, broker: Broker) -> None:
    async with gateway_with_limits(redis.url, tenant_per_minute=3) as api:
        await wait_for_first_part_of_minute(broker)
        created = []
        for number in (1, 2, 3):
            created.append(accepted_id(await post(api, **ANNA, **{"idempotency-key": f"minute-{number}"})))
            accepted_id(
                await post(api, **ANNA, **{"idempotency-key": f"minute-{number}"}), 200
            )  # a replay, not a creation
        for path in ("/v1/generations", "/v1/chat/completions"):
            assert_refused(await post(api, path, **ANNA), 60)
        accepted_id(await post(api, **ANNA, **{"idempotency-key": "minute-1"}), 200)
        of_ben = accepted_id(await post(api, **BEN))
        await api.http.delete(f"/v1/generations/{of_ben}", headers=BEN)
        for gid in created:
            await api.http.delete(f"/v1/generations/{gid}", headers=ANNA)


async def test_the_limit_of_waiting_generations(redis: EmbeddedRedis) -> None:
    """No worker takes them. Cancelling or deleting one frees its place."""
    async with gateway_with_limits(redis.url, tenant_queued=2) as api:
        first = accepted_id(await post(api, **ANNA, **{"idempotency-key": "waiting"}))
        accepted_id(await post(api, **ANNA, **{"idempotency-key": "waiting"}), 200)
        second = accepted_id(await post(api, **ANNA))
        for path in ("/v1/generations", "/v1/chat/completions"):
            assert_refused(await post(api, path, **ANNA), 5)
        accepted_id(await post(api, **ANNA, **{"idempotency-key": "waiting"}), 200)
        of_ben = accepted_id(await post(api, **BEN))
        await api.http.delete(f"/v1/generations/{of_ben}", headers=BEN)
        await api.http.post(f"/v1/generations/{first}/cancel", headers=ANNA)
        third = accepted_id(await post(api, **ANNA))
        assert_refused(await post(api, **ANNA), 5)
        await api.http.delete(f"/v1/generations/{second}", headers=ANNA)
        fourth = accepted_id(await post(api, **ANNA))
        for gid in (third, fourth):
            await api.http.delete(f"/v1/generations/{gid}", headers=ANNA)


async def test_a_tenant_has_limits_of_its_own(own_redis: EmbeddedRedis) -> None:
    own = '{"ben": {"queued": 1, "per_minute": 3, "subscribers": 1, "bytes": 0}}'
    async with (
        connect(own_redis.url) as broker,
        gateway_with_limits(own_redis.url, tenant_queued=2, tenant_bytes=1, tenants=own) as api,
        AsyncExitStack() as stack,
    ):
        await wait_for_first_part_of_minute(broker)
        first = accepted_id(await post(api, **BEN))
        assert_refused(await post(api, **BEN), 5)
        streams = [api.stream("GET", f"/v1/generations/{first}/events", headers=BEN) for _ in range(2)]
        assert (await anext(await stack.enter_async_context(aclosing(streams[0])))).event == "created"
        [told] = [frame async for frame in streams[1]]
        assert b"Subscriber limit reached: 1 streams" in told.raw
        await api.http.delete(f"/v1/generations/{first}", headers=BEN)
        for _ in range(2):  # its stored bytes are not limited
            gid = accepted_id(await post(api, **BEN))
            await api.http.delete(f"/v1/generations/{gid}", headers=BEN)
        assert_refused(await post(api, **BEN), 60)
        of_anna = accepted_id(await post(api, **ANNA))
        assert_refused(await post(api, **ANNA), 60)  # hers are
        await api.http.delete(f"/v1/generations/{of_anna}", headers=ANNA)


async def test_an_idempotency_conflict_takes_no_reservation(redis: EmbeddedRedis) -> None:
    async with gateway_with_limits(redis.url, tenant_queued=2) as api:
        headers = {**BEN, "idempotency-key": "conflict"}
        gid = accepted_id(await post(api, **headers))
        for _ in range(3):
            other = await api.http.post("/v1/generations", json=request_body("Something else."), headers=headers)
            assert other.status_code == 422
        more = accepted_id(await post(api, **BEN))
        for one in (gid, more):
            await api.http.delete(f"/v1/generations/{one}", headers=BEN)


async def test_without_keys_there_are_no_tenant_limits(redis: EmbeddedRedis) -> None:
    async with gateway(redis.url, **dict.fromkeys(OFF, "1")) as api, AsyncExitStack() as stack:
        for _ in range(3):
            gid = accepted_id(await post(api))
        for _ in range(3):
            frames = await stack.enter_async_context(aclosing(api.follow(gid)))
            assert (await anext(frames)).event == "created"


async def test_requests_are_refused_while_quotas_are_unavailable(
    redis: EmbeddedRedis, own_redis: EmbeddedRedis
) -> None:
    """The Redis of the queue is away. A caller may try again, because nothing was created."""
    keyed = {"TOKENCAST_API_KEYS": KEYS, "TOKENCAST_STREAMS_URL": redis.url}
    async with gateway(own_redis.url, **keyed) as api:
        before = (await api.http.get("/v1/generations", headers=ANNA)).json()["data"]
        own_redis.kill()
        response = await post(api, **ANNA)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "storage_unavailable")
        assert "retry-after" in response.headers
        assert "x-should-retry" not in response.headers
        assert (await api.http.get("/v1/generations", headers=ANNA)).json()["data"] == before


@pytest.mark.parametrize(("variables", "scripts"), [({}, [CREATE, OFFER]), (KEYED, [ADMIT, CREATE, OFFER])])
async def test_a_creation_costs_one_round_trip_per_script(
    redis: EmbeddedRedis, variables: dict[str, str], scripts: list[Script]
) -> None:
    async with gateway(redis.url, **variables) as api, connect(redis.url) as broker:
        await post(api, **BEN)  # loads the scripts
        reader, writer = await asyncio.open_connection("127.0.0.1", redis.port, limit=1 << 20)
        writer.write(b"MONITOR\r\n")
        assert await reader.readline() == b"+OK\r\n"
        gid = accepted_id(await post(api, **BEN))
        await broker.queue.redis.execute("ECHO", "over")
        seen = (await reader.readuntil(b'"over"\r\n')).decode().splitlines()
        writer.close()
        await api.http.delete(f"/v1/generations/{gid}", headers=BEN)
    assert [line.split('"')[3] for line in seen if gid in line and " lua]" not in line] == [s.sha for s in scripts]


# --- limit of running generations -----------------------------------------------------------------------------------


def silent_request(label: str) -> dict[str, Any]:
    return request_body(f"[[sim label={label} fault=silent]]", "sim")


async def create(api: Gateway, body: dict[str, Any], headers: dict[str, str]) -> str:
    return (await api.create(body, **headers))["id"]


async def status(api: Gateway, gid: str, headers: dict[str, str]) -> str:
    return (await api.http.get(f"/v1/generations/{gid}", headers=headers)).json()["status"]


async def wait_for_status(api: Gateway, wanted: str, gid: str, headers: dict[str, str]) -> None:
    async def holds() -> bool:
        return await status(api, gid, headers) == wanted

    await wait_until(holds, f"{gid} is not {wanted}")


async def cancel(api: Gateway, *gids: str) -> None:
    for gid in gids:
        await api.http.post(f"/v1/generations/{gid}/cancel", headers=ANNA)


async def wait_for_waiting(redis: EmbeddedRedis, count: int) -> None:
    """Wait until this many of the tenant's generations wait, because it is at its limit."""
    async with connect(redis.url) as broker:
        execute = broker.queue.redis.execute

        async def holds() -> bool:
            waiting = int(await execute("HGET", keys.WAITING_COUNTS, "anna") or 0)
            return waiting == count and (count == 0 or await execute("ZSCORE", keys.FULL, "anna") is not None)

        await wait_until(holds)


async def let_reaper_check(redis: EmbeddedRedis, gid: str) -> None:
    """Let a reaper check the generation; it offers waiting ones to the queue."""
    async with connect(redis.url) as broker:
        execute = broker.store.redis.execute
        await execute("ZADD", keys.live(shard_of(gid)), "XX", 1, gid)

        async def holds() -> bool:
            return float(await execute("ZSCORE", keys.live(shard_of(gid)), gid)) > 1

        await wait_until(holds)


async def test_a_tenant_at_its_limit_waits_without_delaying_others(own_redis: EmbeddedRedis, sim: str) -> None:
    async with gateway_with_limits(own_redis.url, tenant_running=2) as api, worker_with_limit(own_redis.url, sim, 2):
        first, second = [await create(api, silent_request("at-the-limit"), ANNA) for _ in range(2)]
        for running in (first, second):
            await wait_for_status(api, "in_progress", running, ANNA)
        third, fourth, fifth = [await create(api, silent_request("at-the-limit"), ANNA) for _ in range(3)]
        await wait_for_waiting(own_redis, 3)
        of_ben = await create(api, request_body("[[sim length=1 speed=1000]]", "sim"), BEN)
        await wait_for_status(api, "completed", of_ben, BEN)
        await let_reaper_check(own_redis, fifth)
        await wait_for_waiting(own_redis, 3)
        await cancel(api, fourth, second)
        await wait_for_status(api, "in_progress", third, ANNA)  # the oldest waiting one
        assert await status(api, fifth, ANNA) == "queued"
        await cancel(api, first)
        await wait_for_status(api, "in_progress", fifth, ANNA)
        await wait_for_waiting(own_redis, 0)
        await cancel(api, third, fifth)


async def test_the_running_limit_is_never_exceeded_and_all_complete(own_redis: EmbeddedRedis, sim: str) -> None:
    """Two workers with slots for all of them, and a queue in which the tenant is nearly always at its limit."""
    body = request_body("[[sim label=crowd length=3 speed=100]]", "sim")
    async with (
        gateway_with_limits(own_redis.url, tenant_running=3) as api,
        worker_with_limit(own_redis.url, sim, 3),
        worker_with_limit(own_redis.url, sim, 3),
    ):
        gids = [await create(api, body, ANNA) for _ in range(60)]
        await gather(*(wait_for_status(api, "completed", gid, ANNA) for gid in gids))
    calls = await upstream_calls(sim, "crowd")
    moments = sorted([(call["started_at"], 1) for call in calls] + [(call["ended_at"], -1) for call in calls])
    at_once = [sum(change for _, change in moments[: n + 1]) for n in range(len(moments))]
    assert (len(calls), max(at_once)) == (60, 3)


async def test_reservations_survive_data_loss_and_end_with_their_worker(own_redis: EmbeddedRedis, sim: str) -> None:
    """They are written again after a loss. Those of a killed worker end with its lease."""
    async with gateway_with_limits(own_redis.url, tenant_running=1) as api, connect(own_redis.url) as broker:
        async with worker_with_limit(own_redis.url, sim, 1) as first_worker:
            first = await create(api, silent_request("outlived"), ANNA)
            await wait_for_status(api, "in_progress", first, ANNA)
            await broker.queue.redis.execute("DEL", keys.running("anna"))
            await wait_until(lambda: broker.queue.redis.execute("ZCARD", keys.running("anna")))
            second = await create(api, silent_request("outlived"), ANNA)
            await wait_for_waiting(own_redis, 1)
            first_worker.send(signal.SIGKILL)
            await first_worker.wait()
            await cancel(api, first)  # its reservation is not released
            await wait_until(lambda: _no_reservation(broker))
        async with worker_with_limit(own_redis.url, sim, 1):
            await wait_for_status(api, "in_progress", second, ANNA)
            await cancel(api, second)


async def _no_reservation(broker: Broker) -> bool:
    now = int((await broker.queue.redis.execute("TIME"))[0]) * 1000
    return await broker.queue.redis.execute("ZCOUNT", keys.running("anna"), now, "+inf") == 0


async def test_a_hand_over_keeps_its_reservation(own_redis: EmbeddedRedis, sim: str) -> None:
    """In a deploy, a running generation continues before a waiting one starts."""
    async with gateway_with_limits(own_redis.url, tenant_running=1) as api:
        async with worker_with_limit(own_redis.url, sim, 1) as leaving:
            first = await create(api, silent_request("handed-over"), ANNA)
            await wait_for_status(api, "in_progress", first, ANNA)
            second = await create(api, silent_request("handed-over"), ANNA)
            await wait_for_waiting(own_redis, 1)
            await leaving.stop()

        async with worker_with_limit(own_redis.url, sim, 1):
            await wait_for_status(api, "in_progress", first, ANNA)
            assert await status(api, second, ANNA) == "queued"
            await cancel(api, first, second)


# --- subscribers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limits", [{"tenant_subscribers": 2}, {"generation_subscribers": 2}], ids=["of a tenant", "of a generation"]
)
async def test_the_limit_of_subscribers(redis: EmbeddedRedis, broker: Broker, limits: dict[str, int]) -> None:
    """A browser's stream is told to reconnect, and is accepted after another one has closed; an OpenAI client is
    refused."""
    async with gateway_with_limits(redis.url, **limits) as api, AsyncExitStack() as stack:
        writer = await Writer(broker.store.redis, accepted_id(await post(api, **ANNA))).claim()
        await writer.append("one")
        events = f"/v1/generations/{writer.gid}/events"
        first, second = [api.stream("GET", events, headers=ANNA) for _ in range(2)]
        await stack.enter_async_context(aclosing(second))
        for frames in (first, second):
            assert (await anext(frames)).event == "created"
        [refusal] = [frame async for frame in api.stream("GET", events, headers=ANNA)]
        assert re.fullmatch(rb"retry: \d+\n: Subscriber limit reached: 2 .*\.", refusal.raw)
        assert_refused(await api.http.get(f"/v1/chat/completions/{writer.gid}?stream=true", headers=ANNA), 5)
        assert (await api.http.get(events, headers={**ANNA, "accept": "application/json"})).status_code == 200
        assert (await api.http.head(events, headers=ANNA)).status_code == 200
        await first.aclose()

        async def is_accepted() -> bool:
            async with aclosing(api.stream("GET", events, headers=ANNA)) as frames:
                return (await anext(frames)).event == "created"

        await wait_until(is_accepted)
        await writer.finish()


async def test_multiplexed_streams_and_the_activity_count_as_subscribers(redis: EmbeddedRedis) -> None:
    async with gateway_with_limits(redis.url, tenant_subscribers=2) as api, AsyncExitStack() as stack:
        one, other, third = [accepted_id(await post(api, **ANNA)) for _ in range(3)]

        def follow_all(*gids: str) -> AsyncIterator[Frame]:
            query = "&".join(f"generation={gid}" for gid in gids)
            return api.stream("GET", f"/v1/events?{query}", headers=ANNA)

        async def is_told_to_reconnect(frames: AsyncIterator[Frame]) -> bool:
            return [frame.raw.startswith(b"retry: ") async for frame in frames] == [True]

        assert await is_told_to_reconnect(follow_all(one, other, third))
        frames = await stack.enter_async_context(aclosing(follow_all(one)))  # a refused stream keeps no reservation
        assert (await anext(frames)).event == "created"
        watching = await stack.enter_async_context(aclosing(api.stream("GET", "/v1/activity", headers=ANNA)))
        assert (await anext(watching)).event == "created"
        assert await is_told_to_reconnect(follow_all(other))
        assert await is_told_to_reconnect(api.stream("GET", "/v1/activity", headers=ANNA))


async def test_a_refused_subscriber_creates_no_generation(redis: EmbeddedRedis, broker: Broker) -> None:
    async with gateway_with_limits(redis.url, tenant_subscribers=1) as api, AsyncExitStack() as stack:
        gid = accepted_id(await post(api, **BEN))
        frames = await stack.enter_async_context(
            aclosing(api.stream("GET", f"/v1/generations/{gid}/events", headers=BEN))
        )
        assert (await anext(frames)).event == "created"
        assert_refused(await post(api, "/v1/chat/completions", **BEN), 5)
        listed = (await api.http.get("/v1/generations", headers=BEN)).json()["data"]
        assert gid == listed[0]["id"]
