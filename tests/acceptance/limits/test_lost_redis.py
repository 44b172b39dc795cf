"""A Redis that comes back empty: running generations are put back by their workers, and all others are gone."""

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
from tests.faults.scene import QUICK
from tests.support import Gateway, Writer, gateway, gather, request_body, texts, until_text, wait_until, worker
from worker.claims import claim
from worker.simulator.text import pieces


@pytest.fixture
async def quick_api(own_redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    async with gateway(own_redis.url, **QUICK) as api:
        yield api


@pytest.fixture
async def own_api(own_redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    async with gateway(own_redis.url) as api:
        yield api


async def test_subscribers_of_a_running_generation_see_a_pause(
    own_redis: EmbeddedRedis, sim: str, quick_api: Gateway
) -> None:
    """No reset, gap or duplicate; meanwhile the gateway answers 503 and never 404."""
    body = request_body("[[sim seed=5 length=150 speed=40]]", model="sim", metadata={"order": "17"})
    statuses: set[int] = set()
    async with worker(own_redis.url, sim, **QUICK):
        created = await quick_api.create(body, **{"idempotency-key": "k"})
        path = f"/v1/generations/{created['id']}"
        async with aclosing(quick_api.follow(created["id"])) as stream:
            frames = await until_text(stream)
            own_redis.kill()
            await own_redis.restart()

            async def is_known() -> bool:
                statuses.add((await quick_api.http.get(path)).status_code)
                return 200 in statuses

            await wait_until(is_known)
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


async def test_a_generation_without_new_text_is_put_back(
    own_redis: EmbeddedRedis, sim: str, quick_api: Gateway
) -> None:
    """The renewal of the lease detects the loss; afterwards the generation can be cancelled."""
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


async def test_a_queued_generation_is_gone_with_an_empty_redis(own_redis: EmbeddedRedis, quick_api: Gateway) -> None:
    """Queued generations are lost with an empty Redis; after the grace they are gone."""
    gid = (await quick_api.create())["id"]
    follower = asyncio.create_task(quick_api.events(gid))

    async def is_followed() -> bool:
        return "xread" in (await _clients(own_redis.url))

    await wait_until(is_followed)
    await wait_until(lambda: _is_known(quick_api, gid))
    own_redis.kill()
    await own_redis.restart()
    (frames,) = await gather(follower)
    assert [frame.event for frame in frames if not frame.comment][-1] == "gone"
    assert (await quick_api.http.get(f"/v1/generations/{gid}")).status_code == 404


async def _is_known(api: Gateway, gid: str) -> bool:
    return (await api.http.get(f"/v1/generations/{gid}")).status_code == 200


async def _clients(url: str) -> str:
    async with connect(url) as broker:
        return (await broker.store.redis.execute("CLIENT", "LIST")).decode()


KEY = {"idempotency-key": "k"}


async def _connect_without_shard(api: Gateway, but_not: str) -> None:
    """Make the gateway identify the server without seeing this shard."""
    while (gid := new_id(int(time.time() * 1000), "t"))[14:16] == but_not:
        pass
    assert (await api.http.get(f"/v1/generations/{gid}")).status_code in (404, 503)


async def test_a_repeated_post_waits_for_the_generation_that_is_put_back(own_redis: EmbeddedRedis, sim: str) -> None:
    """At the gateway that created it, and at one that has seen only the server. A second generation would be billed
    too."""
    body = request_body("[[sim seed=5 length=300 speed=20]]", model="sim")
    async with gateway(own_redis.url) as api, gateway(own_redis.url) as other, worker(own_redis.url, sim) as process:
        created = await api.create(body, **KEY)
        await _connect_without_shard(other, but_not=shard_of(created["id"]))
        async with aclosing(api.follow(created["id"])) as stream:
            await until_text(stream)
        process.send(signal.SIGSTOP)
        own_redis.kill()
        waiting = asyncio.create_task(api.http.post("/v1/generations", json=body, headers=KEY))
        await own_redis.restart()
        await waiting
        for target in (api, other):

            async def refused(target: Gateway = target) -> httpx2.Response | None:
                answer = await target.http.post("/v1/generations", json=body, headers=KEY)
                return answer if "just come back" in answer.text else None

            answer = await wait_until(refused)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_unavailable")
            assert answer.headers["retry-after"] == "1"
        assert await _count(api) == 0
        process.send(signal.SIGCONT)
        for target in (other, api):

            async def accepted(target: Gateway = target) -> str | None:
                answer = await target.http.post("/v1/generations", json=body, headers=KEY)
                return answer.json().get("id")

            assert await wait_until(accepted) == created["id"]
        assert await _count(api) == 1


async def _count(api: Gateway) -> int:
    return len((await api.http.get("/v1/generations")).json()["data"])


async def test_a_post_without_a_key_is_accepted_once_redis_is_back(own_redis: EmbeddedRedis, own_api: Gateway) -> None:
    await own_api.create(**KEY)
    await own_redis.restart()

    async def accepted() -> bool:
        return (await own_api.http.post("/v1/generations", json=request_body())).status_code == 202

    await wait_until(accepted)
    assert await _count(own_api) == 1


async def test_a_new_redis_accepts_keys_immediately(own_redis: EmbeddedRedis, own_api: Gateway) -> None:
    """Its shards are new, and no data was lost: neither if a gateway waited for it, nor after a request for a
    generation that never existed."""
    for number, key in enumerate(("a", "b", "c")):
        gid = "gen_" + new_id(int(time.time() * 1000), "t")[4:14] + idempotency_shard("default", key) + "0" * 22
        if number:
            assert (await own_api.http.get(f"/v1/generations/{gid}")).status_code == 503
        taken = await own_api.http.post("/v1/generations", json=request_body(), headers={"idempotency-key": key})
        assert taken.status_code == 202


async def test_a_redis_that_kept_its_data_accepts_new_keys_immediately() -> None:
    async with EmbeddedRedis(appendonly=True) as redis, connect(redis.url) as broker:
        for shard in SHARDS:  # as if it had been running for long
            await broker.store.redis.execute("SET", keys.epoch(shard), b"1700000000000.00000000")
        await broker.enqueue(request_body(), idempotency_key="before")
        shard = idempotency_shard("default", "before")
        assert broker.store.data_loss.trusted_epoch(shard) == b"1700000000000.00000000"
        await redis.restart()
        for number in range(40):
            assert not (await broker.store.create(parse_request(request_body()), "default", f"k{number}")).replayed
        assert (await broker.store.create(parse_request(request_body()), "default", "before")).replayed


async def test_a_library_caller_is_refused_during_the_grace(own_redis: EmbeddedRedis) -> None:
    async with connect(own_redis.url) as broker:
        created = await broker.enqueue(request_body(), idempotency_key="library")
        await broker.store.redis.execute("FLUSHALL")
        with pytest.raises(StorageUnavailable, match="just come back"):
            await broker.enqueue(request_body(), idempotency_key="library")
        broker.store.data_loss._grace = 0.0  # after the grace
        assert (await broker.enqueue(request_body(), idempotency_key="library")).id != created.id


async def test_following_a_lost_generation_raises_in_the_library(own_redis: EmbeddedRedis) -> None:
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


async def test_a_missing_generation_is_not_known_yet_or_unknown(broker: Broker) -> None:
    """`not yet` only if this process has seen another epoch: an id that never existed is a plain 404."""
    with pytest.raises(GenerationNotFound):
        await broker.get("gen_" + "0" * 10 + "10" + "0" * 22)
    generation = await broker.enqueue(request_body())
    await broker.store.redis.execute("FLUSHALL")
    with pytest.raises(StorageUnavailable):
        await broker.get(generation.id)
    with pytest.raises(StorageUnavailable):
        await broker.cancel(generation.id)


async def test_no_worker_puts_back_deleted_or_expired_generations(own_redis: EmbeddedRedis, sim: str) -> None:
    """A generation without metadata under the epoch of its claim was removed on purpose."""
    async with connect(own_redis.url) as broker, worker(own_redis.url, sim, **QUICK) as process:
        for removal in ("delete", "expire"):
            directive = "[[sim seed=1 length=4000 speed=50]]"
            generation = await broker.enqueue(request_body(directive, model="sim"))

            async def has_text(gid: str = generation.id) -> bool:
                return (await broker.get(gid)).first_token_at is not None

            await wait_until(has_text)
            if removal == "delete":
                await broker.delete(generation.id)
            else:
                await broker.store.redis.execute("DEL", keys.meta(generation.id), keys.log(generation.id))
            await process.says(rf"{generation.id}: ended elsewhere \(GONE\)")
            assert await broker.store.redis.execute("HGET", keys.meta(generation.id), "own") is None


async def test_a_claim_that_a_failover_lost_is_written_again(own_redis: EmbeddedRedis, sim: str) -> None:
    """Redis falls back to before the claim: the owner of the newer attempt puts it back; a newer claim would win."""
    async with connect(own_redis.url) as broker:
        execute = broker.store.redis.execute
        generation = await broker.enqueue(
            request_body("[[sim seed=2 length=100 speed=50]]", model="sim"), idempotency_key="x"
        )
        names = [keys.meta(generation.id), keys.log(generation.id)]
        dumps = [await execute("DUMP", name) for name in names]
        async with worker(own_redis.url, sim, **QUICK) as process:
            follower = asyncio.create_task(_names(broker, generation.id))

            async def has_text() -> bool:
                return (await broker.get(generation.id)).first_token_at is not None

            await wait_until(has_text)
            for name, dump in zip(names, dumps, strict=True):
                await execute("RESTORE", name, 7_200_000, dump, "REPLACE")
            await process.says(f"{generation.id}: restored")
            (events,) = await gather(follower)
        assert events == ["created", "started", *["chunk"] * (len(events) - 3), "completed"]
        assert (await broker.get(generation.id)).text == "".join(pieces(2, 100))


async def _names(broker: Broker, gid: str) -> list[str]:
    return [event.name async for event in broker.follow(gid)]


async def test_a_ghost_does_not_replace_a_newer_attempt(broker: Broker) -> None:
    generation = await broker.enqueue(request_body())
    ghost = await claim(broker.store.redis, generation.id, broker.settings, "default")
    assert not isinstance(ghost, str)
    await broker.store.redis.execute("HSET", keys.meta(generation.id), "st", "queued", "own", "")
    await Writer(broker.store.redis, generation.id).claim()
    restore = restore_command(
        ghost.gid,
        ghost.own,
        ghost.attempt,
        epoch=ghost.epoch,
        new_epoch=new_epoch(),
        lease_ms=1000,
        known_at_ms=0,
        created_data=ghost.created,
        first_event=ghost.first_event,
        meta=ghost.meta,
    )
    reply = await broker.store.redis.run(RESTORE, list(map(str, restore[3:10])), restore[10:])
    assert reply == [b"FENCED"]
