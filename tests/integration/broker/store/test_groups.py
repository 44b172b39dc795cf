"""Groups on the real scripts: counts that agree with the generations after any sequence of transitions."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from broker import Broker, GroupNotFound, StorageUnavailable, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.ids import shard_of
from broker.records import GroupUsage
from broker.store import commands, keys
from broker.store.commands import REAP, RESTORE, lifecycle_keys, restore_command
from broker.store.store import new_epoch
from tests.support import FINISH, REAPER_OBSERVATION, Writer, request_body
from worker.claims import Claim, claim

STATUSES = ("queued", "in_progress", "completed", "failed", "cancelled")


def grouped(name: str) -> dict[str, Any]:
    return request_body(tokencast={"group": name})


async def reap(broker: Broker, gid: str, budget: int) -> None:
    await broker.store.redis.execute("HSET", keys.meta(gid), "le", 1)
    await broker.store.redis.execute("ZADD", keys.live(shard_of(gid)), 1, gid)
    await broker.store.redis.run(REAP, lifecycle_keys(gid), [gid, 5, budget, *REAPER_OBSERVATION])


async def step(broker: Broker, dice: random.Random, gid: str, status: str) -> None:
    """A random transition from this status."""
    redis = broker.store.redis
    match status, dice.randrange(6):
        case "queued", 0 | 1 | 2:
            await Writer(redis, gid).claim()
        case "in_progress", 0 | 1 as number:
            own = (await redis.execute("HGET", keys.meta(gid), "own")).decode()
            writer = Writer(redis, gid)
            writer.attempt = own.partition(".")[0]
            await writer.finish(*(("completed",) if number else ("failed", b'{"error":{"code":"x"}}')))
        case "in_progress", 2:
            await reap(broker, gid, 9)
        case "in_progress", 3:
            await reap(broker, gid, 1)
        case _, 4:
            await broker.cancel(gid)
        case _, 5 if dice.randrange(4) == 0:
            await broker.delete(gid)
        case _:
            pass


@pytest.mark.parametrize("seed", range(3))
async def test_counts_agree_with_the_generations(broker: Broker, seed: int) -> None:
    name, dice = f"night {seed}", random.Random(seed)
    alive = {(await broker.enqueue(grouped(name))).id for _ in range(12)}
    await broker.enqueue(request_body())
    for _ in range(120):
        gid = dice.choice(sorted(alive))
        await step(broker, dice, gid, (await broker.store.state(gid, "default")).status)
        if await broker.store.redis.execute("HGET", keys.meta(gid), "st") == b"deleted":
            alive.remove(gid)
            alive.add((await broker.enqueue(grouped(name))).id)
        found = Counter([(await broker.store.state(one, "default")).status for one in alive])
        assert (await broker.group(name)).counts == {status: found[status] for status in STATUSES}


async def test_usage_and_times_of_a_group(broker: Broker) -> None:
    with pytest.raises(GroupNotFound):
        await broker.group("paid")
    made = [await broker.enqueue(grouped("paid")) for _ in range(3)]
    redis = broker.store.redis
    for one, usage in zip(
        made[:2], ('{"prompt_tokens":5,"completion_tokens":70}', '{"prompt_tokens": 2}'), strict=True
    ):
        writer = await Writer(redis, one.id).claim()
        finish = ["completed", "stop", usage, "", "[]", 0, "ok", 0, "{}"]
        await redis.run(FINISH, lifecycle_keys(one.id), [one.id, writer.own, f"{writer.attempt}-", 1, *finish])
    group = await broker.group("paid")
    assert (group.usage.prompt_tokens, group.usage.completion_tokens, group.usage.total_tokens) == (7, 70, 77)
    assert (group.created_at, group.ended_at) == (made[0].created_at, None)
    ended = await broker.cancel(made[2].id)
    assert (await broker.group("paid")).ended_at == ended.ended_at
    with pytest.raises(GroupNotFound):
        await broker.group("paid", tenant="another")


async def test_a_cancelled_generation_has_a_usage_if_an_attempt_has_begun(broker: Broker) -> None:
    never = await broker.enqueue(grouped("cancelled"))
    begun = await broker.enqueue(grouped("cancelled"))
    await Writer(broker.store.redis, begun.id).claim()
    assert (await broker.cancel(never.id)).usage is None
    assert (await broker.group("cancelled")).usage == GroupUsage(0, 0, 0)
    _, fields = (await broker.store.redis.execute("XRANGE", keys.log(never.id), "-", "+"))[-1]
    assert fields[-2:] == [b"d", b'{"usage":null}']
    usage = (await broker.cancel(begun.id)).usage
    assert usage is not None
    assert usage["prompt_tokens"] > 0
    assert (await broker.group("cancelled")).usage.prompt_tokens == usage["prompt_tokens"]


async def test_a_group_of_deleted_generations_is_still_known(broker: Broker) -> None:
    gid = (await broker.enqueue(grouped("short"))).id
    await broker.delete(gid)
    group = await broker.group("short")
    assert set(group.counts.values()) == {0}
    assert group.ended_at is not None


@pytest.mark.parametrize("lost", ["everything", "the claim"])
async def test_a_restored_generation_is_counted_once(broker: Broker, lost: str) -> None:
    redis, name = broker.store.redis, f"restored after {lost}"
    created = await broker.enqueue(grouped(name))
    state = [keys.meta(created.id), keys.log(created.id), keys.group(shard_of(created.id), "default", name)]
    dumps = [await redis.execute("DUMP", key) for key in state]
    claimed = await claim(redis, created.id, broker.settings, "default")
    assert isinstance(claimed, Claim)
    if lost == "everything":
        await redis.execute("DEL", *state)
    else:
        for key, dump in zip(state, dumps, strict=True):
            await redis.execute("RESTORE", key, 60_000, dump, "REPLACE")
    command = restore_command(
        claimed.gid,
        claimed.own,
        claimed.attempt,
        epoch=claimed.epoch,
        new_epoch=new_epoch(),
        lease_ms=60_000,
        known_at_ms=claimed.attempt >> 10,
        created_data=claimed.created,
        first_event=claimed.first_event,
        meta=claimed.meta,
    )
    for _ in range(2):
        reply = await redis.run(RESTORE, list(map(str, command[3:10])), command[10:])
        assert reply[0] == b"OK"
    assert (await broker.group(name)).counts == {status: int(status == "in_progress") for status in STATUSES}
    assert await commands.release(redis, claimed.gid, claimed.own, "worker_stopped")
    assert (await broker.group(name)).counts["queued"] == 1


async def test_cancelling_a_group_ends_what_has_not_ended(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.bulk.operations.PAGE", 4)
    results = await broker.enqueue_batch([grouped("stop") for _ in range(11)])
    made = [one.id for one in results if not isinstance(one, Exception)]
    await (await Writer(broker.store.redis, made[0]).claim()).finish()
    await Writer(broker.store.redis, made[1]).claim()
    other = await broker.enqueue(grouped("go on"))
    group = await broker.cancel_group("stop")
    assert group.counts == {"queued": 0, "in_progress": 0, "completed": 1, "failed": 0, "cancelled": 10}
    assert group.ended_at is not None
    assert (await broker.store.state(other.id, "default")).status == "queued"
    assert await broker.cancel_group("stop") == group
    with pytest.raises(GroupNotFound):
        await broker.cancel_group("never")


async def test_a_group_is_not_unknown_while_its_generations_are_restored() -> None:
    async with EmbeddedRedis() as redis, connect(redis.url) as broker:
        await broker.enqueue(grouped("night"))
        assert (await broker.group("night")).counts["queued"] == 1
        with pytest.raises(GroupNotFound):
            await broker.group("never")
        await redis.restart()
        with pytest.raises(StorageUnavailable):
            await broker.group("night")
