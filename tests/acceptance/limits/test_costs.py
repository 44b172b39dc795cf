"""What one caller does costs that caller: answers, prompts and a past that are large, or that nobody reads."""

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
from tests.acceptance.edge.peer import Peer, connections, linux, peer, peers, resident
from tests.support import Gateway, Writer, gateway, gather, request_body, wait_until

MIB = 1 << 20
KEYS = ",".join(f"{t}:{hashlib.sha256(f'key-{t}'.encode()).hexdigest()}" for t in ("anna", "ben"))
ANNA, BEN = {"authorization": "Bearer key-anna"}, {"authorization": "Bearer key-ben"}
LARGEST = {f"key-{number}".ljust(64, "k"): "😀" * 512 for number in range(16)}
"""Metadata: 34 KiB as JSON."""
LONG = "long ".ljust(1_000_000, "x")
MONTH = 30 * 86_400


async def number(redis: Redis, section: str, pattern: str) -> int:
    found = re.search(pattern, (await redis.execute("INFO", section)).decode())
    return int(found[1]) if found else 0


# --- pages ----------------------------------------------------------------------------------------------------


async def test_a_list_of_the_largest_rows_is_several_small_pages(api: Gateway, broker: Broker) -> None:
    """Bounded by bytes, not by rows alone; nothing is left out."""
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
    """Also one that is larger than a page alone."""
    writer = await Writer(broker.store.redis, (await api.create())["id"]).claim()
    for size in [200_000] * 15 + [1_500_000] * 2 + [100] * 200:
        await writer.append("x" * size)
    ids: list[str] = []
    more, query = True, ""
    path = f"/v1/generations/{writer.gid}/events?limit=1000"
    while more:
        response = await api.http.get(path + query, headers={"accept": "application/json"})
        page = response.json()
        assert len(response.content) < 1.6 * MIB, "none is larger than the largest event"
        assert page["data"]
        ids += (event["id"] for event in page["data"])
        more, query = page["has_more"], f"&after={ids[-1]}"
    assert ids == ["0-1", *(f"{writer.attempt}-{seq}" for seq in range(218))]


async def test_a_stored_usage_that_is_too_long_is_shown_by_its_totals(api: Gateway, broker: Broker) -> None:
    """In lists; in an entry of the activity it is left out."""
    gid = (await api.create())["id"]
    redis = broker.store.redis
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8, "more": "x" * 900_000}
    await redis.execute("HSET", keys.meta(gid), "us", json.dumps(usage))
    await Writer(redis, gid).claim()
    row = next(row for row in (await api.http.get("/v1/generations")).json()["data"] if row["id"] == gid)
    assert row["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    [(_, entry)] = await redis.execute("XREVRANGE", keys.activity(shard_of(gid)), "+", "-", "COUNT", 1)
    told = json.loads(entry[7])
    assert (told["id"], told["status"], told["usage"]) == (gid, "in_progress", None)


async def test_an_entry_of_the_activity_is_short(api: Gateway, broker: Broker) -> None:
    """What callers write into it is left out where it is long, and stays in the generation."""
    created = await api.create(request_body(metadata=LARGEST))
    assert created["metadata"] == LARGEST
    [(_, entry)] = await broker.store.redis.execute(
        "XREVRANGE", keys.activity(shard_of(created["id"])), "+", "-", "COUNT", 1
    )
    assert json.loads(entry[7])["metadata"] == {}
    assert len(entry[7]) < 1000


# --- the past of the activity ---------------------------------------------------------------------------------


async def test_a_watcher_reads_a_bounded_part_of_the_past_and_none_behind_latest(api: Gateway, broker: Broker) -> None:
    """Of a full stream, in which most is other tenants'."""
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
        return await number(redis, "stats", r"total_net_output_bytes:(\d+)")

    before = await sent()
    async with aclosing(api.stream("GET", "/v1/activity?after=latest")) as stream:
        assert (await anext(stream)).data is None
    assert await sent() - before < MIB
    before = await sent()
    async with aclosing(api.stream("GET", "/v1/activity")) as stream:
        shown = [await anext(stream) for _ in SHARDS]
    assert all(frame.json["id"] == "gen_own" for frame in shown)
    assert MIB < await sent() - before < 10 * MIB
    assert await number(redis, "memory", r"used_memory:(\d+)") > 20 * MIB


# --- answers that nobody reads --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def narrow(redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    """A gateway that keeps four mebibytes for those who do not read; they have all the time that they want."""
    variables = {"TOKENCAST_UNREAD_BYTES": str(4 * MIB), "TOKENCAST_SEND_TIMEOUT": "300"}
    async with gateway(redis.url, TOKENCAST_API_KEYS=KEYS, **variables) as started:
        yield started


def ask(one: Peer, gid: str, tenant: dict[str, str]) -> None:
    one.get(f"/v1/generations/{gid}?include=request", headers=f"Authorization: {tenant['authorization']}\r\n")


async def long_one(api: Gateway, tenant: dict[str, str]) -> str:
    return (await api.create(request_body(LONG), **tenant))["id"]


@linux
async def test_answers_that_nobody_reads_are_bounded(narrow: Gateway) -> None:
    """A caller that reads has its answer, also of the same tenant; the others are dropped while one waits."""
    gid = await long_one(narrow, ANNA)
    before = resident(narrow)
    async with peers(narrow, 150, receive_buffer=4096) as deaf:
        here = {one.port for one in deaf}
        for one in deaf:
            ask(one, gid, ANNA)
        of_ben = await narrow.http.get(f"/v1/generations/{await long_one(narrow, BEN)}?include=request", headers=BEN)
        assert len(of_ben.content) > 1_000_000
        most = before

        def fewer() -> bool:
            nonlocal most
            most = max(most, resident(narrow))
            return len(here & connections(narrow)) < 140

        await wait_until(fewer)
        print(f"resident: {(most - before) / MIB:.0f} MiB more")
        assert most - before < 100 * MIB
    again = await narrow.http.get(f"/v1/generations/{gid}?include=request", headers=ANNA)
    assert again.json()["request"]["messages"][0]["content"] == LONG


@linux
async def test_a_small_answer_waits_for_none_of_them(narrow: Gateway) -> None:
    large, small = await long_one(narrow, ANNA), (await narrow.create(**ANNA))["id"]
    async with peers(narrow, 40, receive_buffer=4096) as deaf:
        for one in deaf:
            ask(one, large, ANNA)
        for _ in range(20):
            response = await narrow.http.get(f"/v1/generations/{small}", headers=ANNA)
            assert (response.status_code, response.json()["id"]) == (200, small)


async def test_the_next_answer_of_a_connection_is_made_once_the_last_was_taken(narrow: Gateway) -> None:
    """Requests may come one behind the other without waiting; eight long answers at once they are not."""
    gid = await long_one(narrow, BEN)
    count = r'^tokencast_http_requests_total\{method="GET",route="/v1/generations/\{id\}",status="200"\} (\d+)'

    async def answered() -> int:
        found = re.search(count, (await narrow.http.get("/metrics")).text, re.MULTILINE)
        return int(found[1]) if found else 0

    async with peer(narrow, receive_buffer=4096) as one:
        before = await answered()
        for _ in range(8):
            ask(one, gid, BEN)
        await one.until(b"\r\n\r\n")
        whole = await narrow.http.get(f"/v1/generations/{gid}?include=request", headers=BEN)
        assert await answered() - before == 2
        received = 0
        while received < 8 * len(whole.content):
            received += len(await one.reader.read(1 << 16))
        assert await answered() - before == 9


@linux
async def test_an_answer_of_which_nothing_is_taken_has_an_end(redis: EmbeddedRedis) -> None:
    async with gateway(redis.url, TOKENCAST_SEND_TIMEOUT="0.5") as api, peer(api, receive_buffer=4096) as deaf:
        gid = await long_one(api, {})
        deaf.get(f"/v1/generations/{gid}?include=request")
        await deaf.until(b"\r\n\r\n")
        await wait_until(lambda: deaf.port not in connections(api))


# --- a Redis that one tenant could fill -----------------------------------------------------------------------


@asynccontextmanager
async def bounded(**variables: str) -> AsyncGenerator[Gateway, None]:
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
async def test_the_prompts_of_what_was_cancelled_do_not_fill_redis(keyed: bool) -> None:
    """Twice what there is room for, in a tenant's limits of a minute; another one's comes in. Without keys all are one
    tenant, and there is room all the same."""
    anna, ben = (ANNA, BEN) if keyed else ({}, {})
    async with bounded(**({"TOKENCAST_API_KEYS": KEYS, "TOKENCAST_TENANT_PER_MINUTE": "0"} if keyed else {})) as api:
        for _ in range(60):
            created = await post(api, LONG, **anna)
            assert created.status_code == 202, created.text
            await api.http.post(f"/v1/generations/{created.json()['id']}/cancel", headers=anna)
        assert (await post(api, LONG, **ben)).status_code == 202


async def test_a_tenant_has_a_part_of_a_redis_that_is_bounded() -> None:
    """Refused beyond it, until something is deleted; others are not."""
    async with bounded(TOKENCAST_API_KEYS=KEYS) as api:
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


async def test_the_share_can_be_set_and_replays_do_not_change_it(redis: EmbeddedRedis) -> None:
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


async def test_a_cancelled_one_keeps_a_short_request_and_no_long_one(api: Gateway) -> None:
    short, long = await gather(api.create(request_body("short", metadata={"a": "b"})), api.create(request_body(LONG)))
    told: list[Any] = []
    for created in (short, long):
        path = f"/v1/generations/{created['id']}"
        cancelled = (await api.http.post(f"{path}/cancel")).json()
        assert cancelled["status"] == "cancelled"
        told.append((await api.http.get(f"{path}?include=request")).json())
    assert told[0]["request"] == request_body("short", metadata={"a": "b"})
    assert told[1]["request"] is None
    assert told[1]["status"] == "cancelled"
