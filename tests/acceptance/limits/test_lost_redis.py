"""A Redis that comes back with nothing: what runs is put back by its worker, and what does not is said to be gone."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import httpx2
import pytest

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.errors import GenerationGone, GenerationNotFound, StorageUnavailable
from broker.ids import SHARDS, idempotency_shard, new_id, shard_of
from broker.request.body import parse_request
from broker.settings.settings import Settings
from broker.store import keys
from broker.store.commands import RESTORE, restore_command
from broker.store.store import new_epoch
from tests.support import Gateway, Writer, gateway, gather, request_body, texts, until_text, wait_until, worker
from worker.claims import claim
from worker.simulator.text import pieces

QUICK = {"TOKENCAST_LEASE": "2", "TOKENCAST_HEARTBEAT": "0.5"}


@pytest.fixture
async def quick_api(own_redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    async with gateway(own_redis.url, **QUICK) as api:
        yield api


@pytest.fixture
async def api_of_own(own_redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    async with gateway(own_redis.url) as api:
        yield api


async def test_readers_of_a_running_generation_see_a_pause(
    own_redis: EmbeddedRedis, sim: str, quick_api: Gateway
) -> None:
    """No reset, no gap, no duplicate; in between the gateway says 503 and never 404."""
    body = request_body("[[sim seed=5 length=150 speed=40]]", model="sim", metadata={"order": "17"})
    statuses: set[int] = set()
    async with worker(own_redis.url, sim, **QUICK):
        created = await quick_api.create(body, **{"idempotency-key": "k"})
        path = f"/v1/generations/{created['id']}"
        async with aclosing(quick_api.follow(created["id"])) as stream:
            frames = await until_text(stream)
            own_redis.kill()
            await own_redis.restart()

            async def known_again() -> bool:
                statuses.add((await quick_api.http.get(path)).status_code)
                return 200 in statuses

            await wait_until(known_again)
            frames += [frame async for frame in stream if not frame.comment]
        assert statuses <= {200, 503}
        assert [frame.event for frame in frames] == ["created", "started", *["chunk"] * (len(frames) - 3), "completed"]
        assert texts(frames) == "".join(pieces(5, 150))
        assert await quick_api.events(created["id"]) == frames
        stored = await quick_api.get(created["id"])
        assert (stored["text"], stored["attempt"]) == ("".join(pieces(5, 150)), 1)
        assert stored["metadata"] == {"order": "17"}
        assert stored["created_at"] == created["created_at"]
        again = await quick_api.create(body, **{"idempotency-key": "k"})
        assert again["id"] == created["id"]


async def test_a_silent_generation_is_put_back_too(own_redis: EmbeddedRedis, sim: str, quick_api: Gateway) -> None:
    """The lease's renewal notices the loss; a cancel then finds it."""
    async with worker(own_redis.url, sim, **QUICK):
        gid = (await quick_api.create(request_body("[[sim fault=stall at=3 speed=0]]", model="sim")))["id"]
        async with aclosing(quick_api.follow(gid)) as stream:
            await until_text(stream)
            own_redis.kill()
            await own_redis.restart()

            async def cancelled() -> bool:
                return (await quick_api.http.post(f"/v1/generations/{gid}/cancel")).status_code == 200

            await wait_until(cancelled)
            assert [frame.event async for frame in stream if not frame.comment][-1] == "cancelled"


async def test_what_nobody_runs_is_gone_and_its_followers_are_told(
    own_redis: EmbeddedRedis, quick_api: Gateway
) -> None:
    """Queued generations are lost with an empty Redis; after the grace nobody waits for them any more."""
    gid = (await quick_api.create())["id"]
    follower = asyncio.create_task(quick_api.events(gid))

    async def followed() -> bool:
        return "xread" in (await _clients(own_redis.url))

    await wait_until(followed)
    await wait_until(lambda: _observed(quick_api, gid))
    own_redis.kill()
    await own_redis.restart()
    (frames,) = await gather(follower)
    assert [frame.event for frame in frames if not frame.comment][-1] == "gone"
    assert (await quick_api.http.get(f"/v1/generations/{gid}")).status_code == 404


async def _observed(api: Gateway, gid: str) -> bool:
    return (await api.http.get(f"/v1/generations/{gid}")).status_code == 200


async def _clients(url: str) -> str:
    async with connect(url) as broker:
        return (await broker.store.redis.execute("CLIENT", "LIST")).decode()


KEY = {"idempotency-key": "k"}


async def _knows_the_server(api: Gateway, but_not: str) -> None:
    """Its process has asked the server who it is, and has seen nothing of that shard."""
    while (gid := new_id(int(time.time() * 1000), "t"))[14:16] == but_not:
        pass
    assert (await api.http.get(f"/v1/generations/{gid}")).status_code in (404, 503)


async def test_a_repeated_post_waits_for_the_generation_that_is_put_back(own_redis: EmbeddedRedis, sim: str) -> None:
    """At the gateway that created it, and at one that has only seen the server. Another one would be paid for, too."""
    body = request_body("[[sim seed=5 length=300 speed=20]]", model="sim")
    async with gateway(own_redis.url) as api, gateway(own_redis.url) as other, worker(own_redis.url, sim) as process:
        created = await api.create(body, **KEY)
        await _knows_the_server(other, but_not=shard_of(created["id"]))
        async with aclosing(api.follow(created["id"])) as stream:
            await until_text(stream)
        process.send(signal.SIGSTOP)
        own_redis.kill()
        waiting = asyncio.create_task(api.http.post("/v1/generations", json=body, headers=KEY))
        await own_redis.restart()
        await waiting
        for gate in (api, other):

            async def refused(gate: Gateway = gate) -> httpx2.Response | None:
                answer = await gate.http.post("/v1/generations", json=body, headers=KEY)
                return answer if "just come back" in answer.text else None

            answer = await wait_until(refused)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_unavailable")
            assert answer.headers["retry-after"] == "1"
        assert await _count(api) == 0
        process.send(signal.SIGCONT)
        for gate in (other, api):

            async def accepted(gate: Gateway = gate) -> str | None:
                answer = await gate.http.post("/v1/generations", json=body, headers=KEY)
                return answer.json().get("id")

            assert await wait_until(accepted) == created["id"]
        assert await _count(api) == 1


async def _count(api: Gateway) -> int:
    return len((await api.http.get("/v1/generations")).json()["data"])


async def test_a_post_without_a_key_is_taken_as_soon_as_redis_is_back(
    own_redis: EmbeddedRedis, api_of_own: Gateway
) -> None:
    await api_of_own.create(**KEY)
    await own_redis.restart()

    async def accepted() -> bool:
        return (await api_of_own.http.post("/v1/generations", json=request_body())).status_code == 202

    await wait_until(accepted)
    assert await _count(api_of_own) == 1


async def test_a_new_redis_takes_keys_at_once(own_redis: EmbeddedRedis, api_of_own: Gateway) -> None:
    """Its data sets are new, and nothing was lost: neither where a gateway waited for it, nor where somebody has asked
    for a generation that never was."""
    for number, key in enumerate(("a", "b", "c")):
        gid = "gen_" + new_id(int(time.time() * 1000), "t")[4:14] + idempotency_shard("default", key) + "0" * 22
        if number:
            assert (await api_of_own.http.get(f"/v1/generations/{gid}")).status_code == 503
        taken = await api_of_own.http.post("/v1/generations", json=request_body(), headers={"idempotency-key": key})
        assert taken.status_code == 202


async def test_a_redis_that_has_kept_its_data_takes_new_keys_at_once() -> None:
    async with EmbeddedRedis(appendonly=True) as redis, connect(redis.url) as broker:
        for shard in SHARDS:  # as if it had run for long
            await broker.store.redis.execute("SET", keys.epoch(shard), b"1700000000000.00000000")
        await broker.enqueue(request_body(), idempotency_key="before")
        shard = idempotency_shard("default", "before")
        assert broker.store.data_loss.trusted_epoch(shard) == b"1700000000000.00000000"
        await redis.restart()
        for number in range(40):
            assert not (await broker.store.create(parse_request(request_body()), "default", f"k{number}")).replayed
        assert (await broker.store.create(parse_request(request_body()), "default", "before")).replayed


async def test_a_library_caller_is_told_too(own_redis: EmbeddedRedis) -> None:
    async with connect(own_redis.url) as broker:
        created = await broker.enqueue(request_body(), idempotency_key="library")
        await broker.store.redis.execute("FLUSHALL")
        with pytest.raises(StorageUnavailable, match="just come back"):
            await broker.enqueue(request_body(), idempotency_key="library")
        broker.store.data_loss._grace = 0.0  # later
        assert (await broker.enqueue(request_body(), idempotency_key="library")).id != created.id


async def test_a_library_follower_of_a_vanished_generation_gets_an_exception(own_redis: EmbeddedRedis) -> None:
    settings = Settings(REDIS_URL=own_redis.url, lease=0.5, heartbeat=0.3)  # type: ignore[call-arg]
    async with connect(settings=settings) as broker:
        broker.store.data_loss._grace = 0.5
        generation = await broker.enqueue(request_body())

        async def follow() -> list[str]:
            return [event.name async for event in broker.follow(generation.id)]

        follower = asyncio.create_task(follow())
        await wait_until(lambda: any(map(len, broker.hub._readers)))
        await broker.store.redis.execute("FLUSHALL")
        with pytest.raises(GenerationGone):
            await gather(follower)


async def test_a_missing_generation_is_not_known_yet_or_not_known(broker: Broker) -> None:
    """`not yet` only where this process has seen another data set: an id that never was is a plain 404."""
    with pytest.raises(GenerationNotFound):
        await broker.get("gen_" + "0" * 10 + "10" + "0" * 22)
    generation = await broker.enqueue(request_body())
    await broker.store.redis.execute("FLUSHALL")
    with pytest.raises(StorageUnavailable):
        await broker.get(generation.id)
    with pytest.raises(StorageUnavailable):
        await broker.cancel(generation.id)


async def test_no_worker_brings_back_what_was_deleted_or_has_expired(own_redis: EmbeddedRedis, sim: str) -> None:
    """Meta that is missing in the data set of the claim was forgotten on purpose."""
    async with connect(own_redis.url) as broker, worker(own_redis.url, sim, **QUICK) as process:
        for forget in ("delete", "expire"):
            directive = "[[sim seed=1 length=4000 speed=50]]"
            generation = await broker.enqueue(request_body(directive, model="sim"))

            async def begun(gid: str = generation.id) -> bool:
                return (await broker.get(gid)).first_token_at is not None

            await wait_until(begun)
            if forget == "delete":
                await broker.delete(generation.id)
            else:
                await broker.store.redis.execute("DEL", keys.meta(generation.id), keys.log(generation.id))
            await process.says(rf"{generation.id}: ended elsewhere \(GONE\)")
            assert await broker.store.redis.execute("HGET", keys.meta(generation.id), "own") is None


async def test_a_claim_that_a_failover_forgot_is_asserted_again(own_redis: EmbeddedRedis, sim: str) -> None:
    """Redis falls back to before the claim: the owner of the newer attempt puts it back, a newer claim would win."""
    async with connect(own_redis.url) as broker:
        execute = broker.store.redis.execute
        generation = await broker.enqueue(
            request_body("[[sim seed=2 length=100 speed=50]]", model="sim"), idempotency_key="x"
        )
        names = [keys.meta(generation.id), keys.log(generation.id)]
        dumps = [await execute("DUMP", name) for name in names]
        async with worker(own_redis.url, sim, **QUICK) as process:
            follower = asyncio.create_task(_names(broker, generation.id))

            async def begun() -> bool:
                return (await broker.get(generation.id)).first_token_at is not None

            await wait_until(begun)
            for name, dump in zip(names, dumps, strict=True):
                await execute("RESTORE", name, 7_200_000, dump, "REPLACE")
            await process.says(f"{generation.id}: restored")
            (events,) = await gather(follower)
        assert events == ["created", "started", *["chunk"] * (len(events) - 3), "completed"]
        assert (await broker.get(generation.id)).text == "".join(pieces(2, 100))


async def _names(broker: Broker, gid: str) -> list[str]:
    return [event.name async for event in broker.follow(gid)]


async def test_a_zombie_restores_nothing_over_a_newer_attempt(broker: Broker) -> None:
    generation = await broker.enqueue(request_body())
    zombie = await claim(broker.store.redis, generation.id, broker.settings)
    assert not isinstance(zombie, str)
    await broker.store.redis.execute("HSET", keys.meta(generation.id), "st", "queued", "own", "")
    await Writer(broker.store.redis, generation.id).claim()
    restore = restore_command(
        zombie.gid,
        zombie.own,
        zombie.attempt,
        epoch=zombie.epoch,
        new_epoch=new_epoch(),
        lease_ms=1000,
        known_at_ms=0,
        created_data=zombie.created,
        first_event=zombie.first_event,
        meta=zombie.meta,
    )
    reply = await broker.store.redis.run(RESTORE, list(map(str, restore[3:10])), restore[10:])
    assert reply == [b"FENCED"]
