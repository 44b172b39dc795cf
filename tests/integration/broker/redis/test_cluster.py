"""Logs on a Redis Cluster of real processes, with the queue on a separate server and a real gateway and worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from functools import partial
from typing import Any

import pytest

from broker.dev.embedded_redis import EmbeddedRedis
from broker.ids import SHARDS, idempotency_shard, shard_of
from broker.redis.client import connect_redis
from broker.redis.cluster import slot_of
from broker.store import keys
from tests.servers.redis_servers import ENGINES, ClusterGroup, Server, cluster_group
from tests.servers.webhook_receiver import SECRET, webhook_receiver
from tests.support import (
    Frame,
    Gateway,
    Service,
    gateway,
    gather,
    request_body,
    texts,
    upstream_calls,
    wait_until,
    worker,
)
from worker.simulator.text import pieces

LEASE = {"TOKENCAST_LEASE": "3"}


@pytest.fixture(scope="module")
async def cluster() -> AsyncGenerator[ClusterGroup, None]:
    async with cluster_group(ENGINES["redis"]) as started:
        yield started
        for server in started.servers:
            if await server.role() == "master":
                names = await server.ask("KEYS", "*")
                assert [name for name in names if await server.ask("PTTL", name) == -1] == []


@pytest.fixture(scope="module")
def logs(cluster: ClusterGroup) -> dict[str, str]:
    """The settings for the logs."""
    return {"TOKENCAST_STREAMS_URL": cluster.url, **LEASE}


@pytest.fixture(scope="module")
async def api(redis: EmbeddedRedis, logs: dict[str, str]) -> AsyncGenerator[Gateway, None]:
    async with gateway(redis.url, **logs) as started:
        yield started


class Workers:
    """One worker that can be replaced."""

    def __init__(self, stack: AsyncExitStack, start: Callable[[], AbstractAsyncContextManager[Service]]) -> None:
        self._stack = stack
        self._start = start

    async def begin(self) -> None:
        self.current = await self._stack.enter_async_context(self._start())

    async def kill_and_replace(self) -> None:
        self.current.process.kill()
        await self.begin()


@pytest.fixture(scope="module")
async def workers(redis: EmbeddedRedis, sim: str, logs: dict[str, str]) -> AsyncGenerator[Workers, None]:
    async with AsyncExitStack() as stack:
        workers = Workers(stack, lambda: worker(redis.url, sim, **logs))
        await workers.begin()
        yield workers


def key_for(shard: str, number: int) -> str:
    """An idempotency key whose generation is in the shard."""
    wanted = (f"{shard}-{number}-{n}" for n in range(10_000))
    return next(key for key in wanted if idempotency_shard("default", key) == shard)


async def in_shard(api: Gateway, shard: str, prompt: str, number: int = 0) -> str:
    made = await api.create(request_body(prompt, model="sim"), **{"idempotency-key": key_for(shard, number)})
    assert shard_of(made["id"]) == shard
    return made["id"]


def check_text(frames: list[Any], seed: int, length: int, resets: int = 0) -> None:
    names = [frame.event for frame in frames if frame.event]
    assert names.count("reset") == resets
    assert names[-1] == "completed"
    last = max(at for at, name in enumerate(names) if name in ("started", "reset"))
    assert texts(frames[last:]) == "".join(pieces(seed, length))


async def test_a_batch_over_all_masters(api: Gateway, cluster: ClusterGroup) -> None:
    """Created, repeated, filtered, retried and cancelled as on one server."""
    bodies = [request_body(str(n), metadata={"n": str(n % 3)}, tokencast={"group": "all"}) for n in range(150)]
    batch, key = "/v1/generations/batch", {"idempotency-key": "over all"}
    made = [
        item["id"] for item in (await api.http.post(batch, json={"generations": bodies}, headers=key)).json()["data"]
    ]
    assert {shard_of(gid) for gid in made} == set(SHARDS)
    again = (await api.http.post(batch, json={"generations": bodies}, headers=key)).json()["data"]
    assert [item["id"] for item in again] == made
    query = {"limit": 100, "group": "all", "metadata[n]": "1", "status": "queued"}
    listed = (await api.http.get("/v1/generations", params=query)).json()["data"]
    assert {one["id"] for one in listed} == set(made[1::3])
    group = (await api.http.post("/v1/groups/all/cancel")).json()
    assert (group["counts"]["queued"], group["counts"]["cancelled"]) == (0, 150)
    retried = await api.http.post("/v1/generations/retry", json={"status": "cancelled", "group": "all", "limit": 40})
    assert (retried.json()["matched"], retried.json()["retried"]) == (40, 40)
    assert (await api.http.post("/v1/groups/all/cancel")).json()["counts"]["cancelled"] == 190


async def test_generations_of_all_shards_are_created_followed_and_listed(
    api: Gateway, workers: Workers, sim: str, cluster: ClusterGroup
) -> None:
    """64 generations, two in each shard, are followed live, read afterwards, listed and repeated."""
    prompt = "[[sim seed={n} length=30 speed=60 label=way]]"
    made = [await in_shard(api, SHARDS[n % 32], prompt.format(n=n), n) for n in range(64)]
    for _ in range(2):  # live, then from the log
        for number, frames in enumerate(await gather(*(api.events(gid) for gid in made))):
            check_text(frames, number, 30)
    assert len(await upstream_calls(sim, "way")) == 64
    again = await api.http.post(
        "/v1/generations",
        json=request_body(prompt.format(n=5), model="sim"),
        headers={"idempotency-key": key_for(SHARDS[5], 5)},
    )
    assert (again.status_code, again.json()["id"]) == (200, made[5])
    listed: list[str] = []
    page = {"data": [], "has_more": True}
    while page["has_more"]:
        after = {"after": listed[-1]} if listed else {}
        page = (await api.http.get("/v1/generations", params={"limit": 20, "status": "completed", **after})).json()
        listed += [generation["id"] for generation in page["data"]]
    assert listed == sorted(made, reverse=True)
    held = [await server.ask("DBSIZE") for server in cluster.masters]
    assert min(held) > 50  # the keys are spread over all masters


async def test_all_shards_are_followed_on_one_connection(api: Gateway, workers: Workers) -> None:
    """One stream has the lifecycle events of a generation in each shard, another one their events."""
    async with asyncio.timeout(60), aclosing(api.stream("GET", "/v1/activity?after=latest")) as activity:
        await anext(activity)
        made = [await in_shard(api, shard, "[[sim length=5 speed=60]]", 900) for shard in SHARDS]
        path = "/v1/events?" + "&".join(f"generation={gid}" for gid in made)
        frames = [frame async for frame in api.stream("GET", path)]
        ends = {gid: [f.event for f in frames if f.data and f.json["generation"] == gid][-1] for gid in made}
        assert ends == dict.fromkeys(made, "completed")
        seen: dict[str, list[str | None]] = {gid: [] for gid in made}
        while not all("completed" in events for events in seen.values()):
            frame = await anext(activity)
            if frame.data:
                seen[frame.json["id"]].append(frame.event)
        assert list(seen.values()) == [["created", "started", "completed"]] * len(made)


async def test_cancel_and_delete(api: Gateway, workers: Workers) -> None:
    for shard in SHARDS[::8]:
        gid = await in_shard(api, shard, "[[sim length=2000 speed=20]]", 100)
        async with aclosing(api.follow(gid)) as stream:
            async for frame in stream:
                if frame.event == "chunk":
                    break
            assert (await api.http.post(f"/v1/generations/{gid}/cancel")).json()["status"] == "cancelled"
            assert [frame.event async for frame in stream][-1] == "cancelled"
        assert (await api.http.delete(f"/v1/generations/{gid}")).status_code == 204
        assert (await api.http.get(f"/v1/generations/{gid}")).status_code == 410


async def redelivered(api: Gateway, gid: str) -> bool:
    """False while its first attempt has not been recorded."""
    return (await api.http.post(f"/v1/generations/{gid}/deliveries/1/redeliver")).status_code == 202


async def test_webhooks_of_all_shards(redis: EmbeddedRedis, logs: dict[str, str]) -> None:
    """Delivered, listed, repeated and counted."""
    allowed = {"TOKENCAST_WEBHOOK_SECRET": SECRET, "TOKENCAST_WEBHOOK_ALLOW_PRIVATE": "1"}
    async with webhook_receiver() as receiver, gateway(redis.url, **logs, **allowed) as api:
        body = request_body("Hello.", tokencast={"webhook": {"url": receiver.url}, "delay_seconds": 3600})
        ids: list[str] = []
        for shard in SHARDS:
            gid = (await api.create(body, **{"idempotency-key": key_for(shard, 77)}))["id"]
            await api.http.post(f"/v1/generations/{gid}/cancel")
            ids.append(gid)
        await receiver.received(len(ids))
        await wait_until(partial(redelivered, api, ids[0]))
        received = await receiver.received(len(ids) + 1)
        listed = (await api.http.get(f"/v1/generations/{ids[1]}/deliveries")).json()
        metrics = (await api.http.get("/metrics")).text
    assert sorted(request.id for request in received) == sorted(f"msg_{gid}_cancelled" for gid in (*ids, ids[0]))
    assert [attempt["status"] for attempt in listed["data"]] == [204]
    assert "tokencast_webhooks_waiting" in metrics


async def test_generations_of_a_killed_worker_restart(api: Gateway, workers: Workers) -> None:
    made = [await in_shard(api, shard, f"[[sim seed={n} length=100 speed=50]]", 200) for n, shard in shards(8)]
    readers = [asyncio.create_task(api.events(gid)) for gid in made]
    await wait_until(lambda: has_first_token(api, made[-1]))
    await workers.kill_and_replace()
    for number, frames in enumerate(await gather(*readers)):
        check_text(frames, number, 100, resets=1)


def shards(count: int) -> list[tuple[int, str]]:
    return list(enumerate(SHARDS[:: 32 // count]))


async def has_first_token(api: Gateway, gid: str) -> bool:
    return (await api.get(gid))["first_token_at"] is not None


class Move:
    """The migration of a shard from one master to another."""

    def __init__(self, slot: int, source: Server, target: Server, ids: dict[Server, str]) -> None:
        self._slot = slot
        self.source = source
        self._target = target
        self._ids = ids

    @classmethod
    async def of(cls, cluster: ClusterGroup, shard: str) -> Move:
        slot = slot_of(shard)
        source = await cluster.owner(slot)
        target = next(server for server in cluster.masters if server is not source)
        ids = {server: (await server.ask("CLUSTER", "MYID")).decode() for server in (source, target)}
        return cls(slot, source, target, ids)

    async def begin(self) -> None:
        await self._target.ask("CLUSTER", "SETSLOT", self._slot, "IMPORTING", self._ids[self.source])
        await self.source.ask("CLUSTER", "SETSLOT", self._slot, "MIGRATING", self._ids[self._target])

    async def keys(self, *names: str) -> None:
        for name in names:
            assert await self.source.ask("MIGRATE", *self._target.node, name, 0, 5000) == b"OK"

    async def all_keys(self) -> None:
        while names := await self.source.ask("CLUSTER", "GETKEYSINSLOT", self._slot, 100):
            await self.source.ask("MIGRATE", *self._target.node, "", 0, 5000, "KEYS", *names)

    async def end(self) -> None:
        for server in (self._target, self.source):
            await server.ask("CLUSTER", "SETSLOT", self._slot, "NODE", self._ids[self._target])


async def test_a_shard_moves_under_running_generations(
    api: Gateway, workers: Workers, sim: str, cluster: ClusterGroup
) -> None:
    """While its keys are split between two masters, scripts and reads get ASK or TRYAGAIN, and later MOVED. Readers
    notice nothing; creations in the shard wait."""
    shard = SHARDS[9]
    move = await Move.of(cluster, shard)
    prompt = "[[sim seed={} length=800 speed=50 label=moves]]"
    first, second = [await in_shard(api, shard, prompt.format(n), 300 + n) for n in (0, 1)]
    third = await in_shard(api, shard, "[[sim seed=2 length=40 speed=50 label=third]]", 302)
    seen: dict[str, list[Frame]] = {gid: [] for gid in (first, second, third)}
    readers = [asyncio.create_task(collect(api, gid, into)) for gid, into in seen.items()]
    await wait_until(lambda: all(len(frames) > 5 for frames in seen.values()))

    await move.begin()
    late = asyncio.create_task(wait_until(lambda: created(api, shard, prompt.format(3))))
    await move.keys(keys.meta(first), keys.log(first))
    await more_frames(seen[first])  # on the target, read together with others on the source
    await more_frames(seen[second])
    assert [(await api.get(gid))["status"] for gid in (first, second)] == ["in_progress"] * 2
    await move.all_keys()
    await more_frames(seen[first])  # ASK is followed and the connection is kept
    await more_frames(seen[second])
    await wait_until(lambda: answered(sim, "third"))  # its ending waits: one of the script's keys does not exist yet
    assert "lost Redis: ASK" not in api.process.output
    await move.end()
    await gather(*readers)
    for gid, seed, length in ((first, 0, 800), (second, 1, 800), (third, 2, 40)):
        check_text(seen[gid], seed, length)
    check_text(await api.events(await late), 3, 800)
    assert len(await upstream_calls(sim, "moves")) == 3


@pytest.mark.parametrize(("alone", "number"), [("record", 500), ("live", 501)])
async def test_a_key_that_moves_alone_does_not_end_a_lease(
    api: Gateway, workers: Workers, sim: str, cluster: ClusterGroup, alone: str, number: int
) -> None:
    """Leases are renewed and events appended while another key that a renewal writes is on the other master."""
    shard = SHARDS[20]
    move = await Move.of(cluster, shard)
    gid = await in_shard(api, shard, f"[[sim seed=4 length=350 speed=40 label=alone-{alone}]]", number)
    frames: list[Frame] = []
    reader = asyncio.create_task(collect(api, gid, frames))
    await wait_until(lambda: len(frames) > 5)
    await move.begin()
    record = keys.idempotency(shard, "default", key_for(shard, number))
    await move.keys(record if alone == "record" else keys.live(shard))
    before = await lease_end(move.source, gid)

    async def renewed_for_a_whole_lease() -> bool:
        return await lease_end(move.source, gid) > before + 3000

    await wait_until(renewed_for_a_whole_lease)
    await more_frames(frames)
    await move.all_keys()
    await move.end()
    await gather(reader)
    check_text(frames, 4, 350)
    assert len(await upstream_calls(sim, f"alone-{alone}")) == 1
    assert "refuses an append" not in workers.current.output


async def lease_end(server: Server, gid: str) -> int:
    """The end of a generation's lease in ms, by the server's clock."""
    return int(await server.ask("HGET", keys.meta(gid), "le"))


@pytest.mark.parametrize("endpoint", ["unknown-endpoint", "hostname"])
async def test_a_cluster_with_replies_without_a_host(
    redis: EmbeddedRedis, logs: dict[str, str], sim: str, cluster: ClusterGroup, endpoint: str
) -> None:
    """CLUSTER SLOTS, MOVED and ASK then refer to the host that sent the reply."""
    for server in cluster.servers:
        await server.ask("CONFIG", "SET", "cluster-preferred-endpoint-type", endpoint)
    shard, number = SHARDS[25], 600 + len(endpoint)
    prompt = f"[[sim seed=6 length=120 speed=40 label={endpoint}]]"
    try:
        async with gateway(redis.url, **logs) as api, worker(redis.url, sim, **logs):
            gid = await in_shard(api, shard, prompt, number)
            frames: list[Frame] = []
            reader = asyncio.create_task(collect(api, gid, frames))
            await wait_until(lambda: len(frames) > 5)
            move = await Move.of(cluster, shard)
            await move.begin()
            await move.all_keys()
            await more_frames(frames)
            await move.end()
            await gather(reader)
            check_text(frames, 6, 120)
            check_text(
                await api.events(await in_shard(api, shard, "[[sim seed=7 length=5 speed=0]]", number + 50)), 7, 5
            )
        assert len(await upstream_calls(sim, endpoint)) == 1
    finally:
        for server in cluster.servers:
            await server.ask("CONFIG", "SET", "cluster-preferred-endpoint-type", "ip")


async def created(api: Gateway, shard: str, prompt: str) -> str | None:
    """Create a generation. Returns None if the gateway reports that the storage is unavailable."""
    body, headers = request_body(prompt, model="sim"), {"idempotency-key": key_for(shard, 303)}
    answer = await api.http.post("/v1/generations", json=body, headers=headers)
    assert answer.status_code in (202, 503), answer.text
    return answer.json().get("id")


async def collect(api: Gateway, gid: str, into: list[Frame]) -> None:
    async for frame in api.follow(gid):
        into.append(frame)


async def more_frames(frames: list[Frame]) -> None:
    seen = len(frames)
    await wait_until(lambda: len(frames) > seen + 5)


async def answered(sim: str, label: str) -> bool:
    (call,) = await upstream_calls(sim, label)
    return call["outcome"] == "completed"


async def test_a_killed_master_stalls_only_its_shards(
    api: Gateway, workers: Workers, sim: str, cluster: ClusterGroup
) -> None:
    """Its generations pause until a replica has taken over, and events that the replica lacks are sent again. Readers
    of other shards notice nothing."""
    doomed = cluster.masters[1]
    own, others = [], []
    for number, shard in shards(16):
        gid = await in_shard(api, shard, f"[[sim seed={number} length=250 speed=50 label=killed]]", 400)
        (own if await cluster.owner(slot_of(shard)) is doomed else others).append((number, gid))
    seen: dict[str, list[Frame]] = {gid: [] for _, gid in (*own, *others)}
    readers = [asyncio.create_task(collect(api, gid, into)) for gid, into in seen.items()]
    await wait_until(lambda: all(len(frames) > 5 for frames in seen.values()))
    doomed.kill()
    assert (await api.http.get("/readyz")).status_code == 200  # for the others
    for _, gid in others:
        await more_frames(seen[gid])
    await gather(*readers)
    for number, gid in (*own, *others):
        check_text(seen[gid], number, 250)
    assert len(await upstream_calls(sim, "killed")) == 16
    assert len(own) >= 4
    after = await in_shard(api, shard_of(own[0][1]), "[[sim seed=1 length=5 speed=0]]", 401)
    check_text(await api.events(after), 1, 5)
    await doomed.start()
    await wait_until(lambda: is_replica(doomed))


async def is_replica(server: Server) -> bool:
    return await server.role() == "slave"


async def test_permissions_are_checked_on_each_master(cluster: ClusterGroup, redis: EmbeddedRedis) -> None:
    rights = ("on", ">pw", "~*", "&*", "+@all")
    for master in cluster.masters:
        await master.ask("ACL", "SETUSER", "weak", *rights)
    await cluster.masters[-1].ask("ACL", "SETUSER", "weak", "-xadd")
    url = cluster.url.replace("://", "://weak:pw@")
    with pytest.raises(AssertionError, match=r"^ended.*\n[^\n]*no permissions to run XADD \(ACL: \+xadd\)$"):
        async with gateway(redis.url, TOKENCAST_STREAMS_URL=url):
            pass


async def test_cluster_urls_that_cannot_work_are_refused(cluster: ClusterGroup, redis: EmbeddedRedis) -> None:
    """A queue on a cluster is refused in one line, and a server without cluster support is reported as such."""
    with pytest.raises(
        AssertionError, match=r"^ended.*\ntokencast worker: REDIS_URL: the queue cannot be on a Redis Cluster[^\n]*$"
    ):
        async with worker(cluster.url, "http://127.0.0.1:9/v1"):
            pass
    async with connect_redis(redis.url.replace("redis://", "redis+cluster://")) as alone:
        assert "cluster support disabled" in str(await alone.unavailable_reason())
