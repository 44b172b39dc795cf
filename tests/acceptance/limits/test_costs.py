"""The costs of one caller do not affect others: large responses, prompts and histories, and responses that are not
read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx2
import pytest

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.ids import SHARDS, shard_of
from broker.redis.client import Redis
from broker.store import keys
from tests.acceptance.edge.peer import Peer, connections, linux, peer, peers, resident_memory
from tests.support import Gateway, Writer, gateway, gather, request_body, wait_until

MIB = 1 << 20
KEYS = ",".join(f"{t}:{hashlib.sha256(f'key-{t}'.encode()).hexdigest()}" for t in ("anna", "ben"))
ANNA, BEN = {"authorization": "Bearer key-anna"}, {"authorization": "Bearer key-ben"}
LARGEST = {f"key-{number}".ljust(64, "k"): "😀" * 512 for number in range(16)}
"""Metadata: 34 KiB as JSON."""
LONG = "long ".ljust(1_000_000, "x")
MONTH = 30 * 86_400


async def redis_info(redis: Redis, section: str, pattern: str) -> int:
    found = re.search(pattern, (await redis.execute("INFO", section)).decode())
    return int(found[1]) if found else 0


# --- pages ----------------------------------------------------------------------------------------------------


async def test_a_list_of_the_largest_rows_has_small_pages(api: Gateway, broker: Broker) -> None:
    """Pages are bounded in bytes as well as in rows, and no row is missing."""
    made = {(await api.create(request_body(metadata=LARGEST)))["id"] for _ in range(70)}
    seen: list[str] = []
    query, more = "", True
    while more:
        response = await api.http.get(f"/v1/generations?limit=100{query}")
        assert len(response.content) < 1.2 * MIB
        page = response.json()
        assert page["data"]
        seen += (row["id"] for row in page["data"])
        more, query = page["has_more"], f"&after={seen[-1]}"
    assert len(seen) == len(set(seen))
    assert made <= set(seen)


async def test_a_page_of_the_largest_events_ends_early(api: Gateway, broker: Broker) -> None:
    """Also if a single event is larger than a page."""
    writer = await Writer(broker.store.redis, (await api.create())["id"]).claim()
    for size in [200_000] * 15 + [1_500_000] * 2 + [100] * 200:
        await writer.append("x" * size)
    ids: list[str] = []
    more, query = True, ""
    path = f"/v1/generations/{writer.gid}/events?limit=1000"
    while more:
        response = await api.http.get(path + query, headers={"accept": "application/json"})
        page = response.json()
        assert len(response.content) < 1.6 * MIB, "at most one event above the size of a page"
        assert page["data"]
        ids += (event["id"] for event in page["data"])
        more, query = page["has_more"], f"&after={ids[-1]}"
    assert ids == ["0-1", *(f"{writer.attempt}-{seq}" for seq in range(218))]


async def test_a_long_stored_usage_is_shown_by_its_totals(api: Gateway, broker: Broker) -> None:
    """In lists; an entry of the activity omits it."""
    gid = (await api.create())["id"]
    redis = broker.store.redis
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8, "more": "x" * 900_000}
    await redis.execute("HSET", keys.meta(gid), "us", json.dumps(usage))
    await Writer(redis, gid).claim()
    row = next(row for row in (await api.http.get("/v1/generations")).json()["data"] if row["id"] == gid)
    assert row["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    [(_, entry)] = await redis.execute("XREVRANGE", keys.activity(shard_of(gid)), "+", "-", "COUNT", 1)
    snapshots = json.loads(entry[7])
    assert (snapshots["id"], snapshots["status"], snapshots["usage"]) == (gid, "in_progress", None)


async def test_an_entry_of_the_activity_is_short(api: Gateway, broker: Broker) -> None:
    """Long metadata of callers are omitted there, and kept in the generation."""
    created = await api.create(request_body(metadata=LARGEST))
    assert created["metadata"] == LARGEST
    [(_, entry)] = await broker.store.redis.execute(
        "XREVRANGE", keys.activity(shard_of(created["id"])), "+", "-", "COUNT", 1
    )
    assert json.loads(entry[7])["metadata"] == {}
    assert len(entry[7]) < 1000


# --- the history of the activity -----------------------------------------------------------------------------------


async def test_the_activity_reads_a_bounded_history_and_none_after_latest(api: Gateway, broker: Broker) -> None:
    """From a full stream that contains mostly entries of other tenants."""
    redis = broker.store.redis
    noise = json.dumps({"id": "gen_other", "padding": "x" * 2000})
    own = json.dumps({"id": "gen_own"})
    for shard in SHARDS:
        name = keys.activity(shard)
        fields = ("XADD", name, "*", "tn")
        await redis.pipeline([(*fields, "other", "g", "gen_other", "e", "created", "d", noise)] * 500)
        await redis.pipeline(
            [(*fields, "default", "g", "gen_own", "e", "created", "d", own), ("PEXPIRE", name, 86_400_000)]
        )

    async def sent() -> int:
        return await redis_info(redis, "stats", r"total_net_output_bytes:(\d+)")

    before = await sent()
    async with aclosing(api.stream("GET", "/v1/activity?after=latest")) as stream:
        assert (await anext(stream)).data is None
    assert await sent() - before < MIB
    before = await sent()
    async with aclosing(api.stream("GET", "/v1/activity")) as stream:
        shown = [await anext(stream) for _ in SHARDS]
    assert all(frame.json["id"] == "gen_own" for frame in shown)
    assert MIB < await sent() - before < 10 * MIB
    assert await redis_info(redis, "memory", r"used_memory:(\d+)") > 20 * MIB


# --- responses that are not read -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def small_buffer(redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    """A gateway that holds four mebibytes for clients that do not read; they have a long send timeout."""
    variables = {"TOKENCAST_UNREAD_BYTES": str(4 * MIB), "TOKENCAST_SEND_TIMEOUT": "300"}
    async with gateway(redis.url, TOKENCAST_API_KEYS=KEYS, **variables) as started:
        yield started


def request_generation(one: Peer, gid: str, tenant: dict[str, str]) -> None:
    one.get(f"/v1/generations/{gid}?include=request", headers=f"Authorization: {tenant['authorization']}\r\n")


async def long_generation(api: Gateway, tenant: dict[str, str]) -> str:
    return (await api.create(request_body(LONG), **tenant))["id"]


@linux
async def test_unread_responses_are_bounded(small_buffer: Gateway) -> None:
    """A caller that reads gets its response, even from the same tenant; unread ones are dropped while another waits."""
    gid = await long_generation(small_buffer, ANNA)
    before = resident_memory(small_buffer)
    async with peers(small_buffer, 150, receive_buffer=4096) as unreading:
        here = {one.port for one in unreading}
        for one in unreading:
            request_generation(one, gid, ANNA)
        of_ben = await small_buffer.http.get(
            f"/v1/generations/{await long_generation(small_buffer, BEN)}?include=request", headers=BEN
        )
        assert len(of_ben.content) > 1_000_000
        most = before

        def some_are_dropped() -> bool:
            nonlocal most
            most = max(most, resident_memory(small_buffer))
            return len(here & connections(small_buffer)) < 140

        await wait_until(some_are_dropped)
        print(f"resident memory: {(most - before) / MIB:.0f} MiB more")
        assert most - before < 100 * MIB
    again = await small_buffer.http.get(f"/v1/generations/{gid}?include=request", headers=ANNA)
    assert again.json()["request"]["messages"][0]["content"] == LONG


@linux
async def test_a_small_response_does_not_wait_for_unread_ones(small_buffer: Gateway) -> None:
    large, small = await long_generation(small_buffer, ANNA), (await small_buffer.create(**ANNA))["id"]
    async with peers(small_buffer, 40, receive_buffer=4096) as unreading:
        for one in unreading:
            request_generation(one, large, ANNA)
        for _ in range(20):
            response = await small_buffer.http.get(f"/v1/generations/{small}", headers=ANNA)
            assert (response.status_code, response.json()["id"]) == (200, small)


async def test_the_next_response_of_a_connection_waits_until_the_last_is_read(small_buffer: Gateway) -> None:
    """Requests may be pipelined, but eight long responses are not produced at once."""
    gid = await long_generation(small_buffer, BEN)
    count = r'^tokencast_http_requests_total\{method="GET",route="/v1/generations/\{id\}",status="200"\} (\d+)'

    async def response_count() -> int:
        found = re.search(count, (await small_buffer.http.get("/metrics")).text, re.MULTILINE)
        return int(found[1]) if found else 0

    async with peer(small_buffer, receive_buffer=4096) as one:
        before = await response_count()
        for _ in range(8):
            request_generation(one, gid, BEN)
        await one.until(b"\r\n\r\n")
        whole = await small_buffer.http.get(f"/v1/generations/{gid}?include=request", headers=BEN)
        assert await response_count() - before == 2
        received = 0
        while received < 8 * len(whole.content):
            received += len(await one.reader.read(1 << 16))
        assert await response_count() - before == 9


@linux
async def test_an_unread_response_is_dropped_after_the_send_timeout(redis: EmbeddedRedis) -> None:
    async with gateway(redis.url, TOKENCAST_SEND_TIMEOUT="0.5") as api, peer(api, receive_buffer=4096) as unreading:
        gid = await long_generation(api, {})
        unreading.get(f"/v1/generations/{gid}?include=request")
        await unreading.until(b"\r\n\r\n")
        await wait_until(lambda: unreading.port not in connections(api))


# --- a Redis that one tenant could fill -------------------------------------------------------------------------------


@asynccontextmanager
async def gateway_with_small_redis(**variables: str) -> AsyncGenerator[Gateway, None]:
    """A gateway with a Redis of 30 MB."""
    async with EmbeddedRedis(options={"maxmemory": "30mb"}) as server, gateway(server.url, **variables) as api:
        yield api
        async with connect(server.url) as broker:
            names = await broker.store.redis.execute("KEYS", "*")
            lifetimes = await broker.store.redis.pipeline([("PTTL", name) for name in names])
            assert -1 not in lifetimes


async def post(api: Gateway, prompt: str, **headers: str) -> httpx2.Response:
    return await api.http.post("/v1/generations", json=request_body(prompt, ttl_seconds=MONTH), headers=headers)


@pytest.mark.parametrize("keyed", [True, False])
async def test_prompts_of_cancelled_generations_do_not_fill_redis(keyed: bool) -> None:
    """Twice the capacity of Redis, within the tenant's limits per minute; another tenant's request is accepted. Without
    keys all requests are of one tenant, and there is still room."""
    anna, ben = (ANNA, BEN) if keyed else ({}, {})
    async with gateway_with_small_redis(
        **({"TOKENCAST_API_KEYS": KEYS, "TOKENCAST_TENANT_PER_MINUTE": "0"} if keyed else {})
    ) as api:
        for _ in range(60):
            created = await post(api, LONG, **anna)
            assert created.status_code == 202, created.text
            await api.http.post(f"/v1/generations/{created.json()['id']}/cancel", headers=anna)
        assert (await post(api, LONG, **ben)).status_code == 202


async def test_a_tenant_has_a_share_of_a_bounded_redis() -> None:
    """Requests above the share are refused until something is deleted; those of other tenants are accepted."""
    async with gateway_with_small_redis(TOKENCAST_API_KEYS=KEYS) as api:
        made: list[str] = []
        while (response := await post(api, LONG, **ANNA)).status_code == 202:
            made.append(response.json()["id"])
        assert (response.status_code, response.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert "stored requests" in response.json()["error"]["message"]
        assert int(response.headers["retry-after"]) >= 1
        assert 5 < len(made) < 15
        assert (await post(api, LONG, **BEN)).status_code == 202
        for gid in made[:3]:
            await api.http.delete(f"/v1/generations/{gid}", headers=ANNA)
        assert (await post(api, LONG, **ANNA)).status_code == 202


async def test_the_share_is_configurable_and_unchanged_by_replays(redis: EmbeddedRedis) -> None:
    async with gateway(redis.url, TOKENCAST_API_KEYS=KEYS, TOKENCAST_TENANT_BYTES="300") as api:
        body: dict[str, Any] = request_body("x" * 200)
        key = {**ANNA, "idempotency-key": "share"}
        assert (await api.http.post("/v1/generations", json=body, headers=key)).status_code == 202
        statuses = [(await api.http.post("/v1/generations", json=body, headers=key)).status_code for _ in range(5)]
        assert statuses == [200] * 5
        assert (await api.http.post("/v1/generations", json=body, headers=ANNA)).status_code == 202
        assert (await api.http.post("/v1/generations", json=body, headers=ANNA)).status_code == 429
        assert (await api.http.post("/v1/generations", json=body, headers=key)).status_code == 200
        assert (await api.http.post("/v1/generations", json=body, headers=ANNA)).status_code == 429


async def test_a_cancelled_generation_keeps_only_a_short_request(api: Gateway) -> None:
    short, long = await gather(api.create(request_body("short", metadata={"a": "b"})), api.create(request_body(LONG)))
    snapshots: list[Any] = []
    for created in (short, long):
        path = f"/v1/generations/{created['id']}"
        cancelled = (await api.http.post(f"{path}/cancel")).json()
        assert cancelled["status"] == "cancelled"
        snapshots.append((await api.http.get(f"{path}?include=request")).json())
    assert snapshots[0]["request"] == request_body("short", metadata={"a": "b"})
    assert snapshots[1]["request"] is None
    assert snapshots[1]["status"] == "cancelled"
