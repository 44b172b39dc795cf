"""Lists and counts on a real Redis: complete for any ids, and bounded for any number of expired generations."""

from __future__ import annotations

import random
import re
import time

import pytest

from broker import Broker
from broker.ids import ALL_TENANTS, SHARDS, new_id, shard_of
from broker.request.body import parse_request
from broker.store import keys
from broker.store import listing as lists
from tests.support import Writer, request_body

TENANT = "lister"


async def fresh(broker: Broker) -> Broker:
    await broker.store.redis.execute("FLUSHALL")
    return broker


async def made(broker: Broker, *gids: str) -> list[str]:
    for gid in gids:
        await broker.store.create(parse_request(request_body()), TENANT, None, gid)
    return list(gids)


async def expired(broker: Broker, count: int, since_ms: int) -> None:
    """Add index members of generations that expired long ago."""
    members: dict[str, list[str | int]] = {}
    for number in range(count):
        gid = new_id(since_ms + number // 10, TENANT)
        members.setdefault(shard_of(gid), []).extend((since_ms + number // 10, gid))
    await broker.store.redis.pipeline(
        [
            ("ZADD", keys.index(shard, TENANT, status), *pairs)
            for shard, pairs in members.items()
            for status in (None, "completed")
        ]
    )
    await broker.store.redis.pipeline(
        [("EXPIRE", keys.index(shard, TENANT, status), 3600) for shard in members for status in (None, "completed")]
    )


async def indexed(broker: Broker) -> int:
    sizes = await broker.store.redis.pipeline([("ZCARD", keys.index(shard, TENANT)) for shard in SHARDS])
    return sum(sizes)


async def calls(broker: Broker, command: str) -> int:
    stats = (await broker.store.redis.execute("INFO", "commandstats")).decode()
    found = re.search(rf"cmdstat_{command}:calls=(\d+)", stats)
    return int(found[1]) if found else 0


async def all_pages(broker: Broker, limit: int, status: str | None = None) -> list[str]:
    seen: list[str] = []
    more, after = True, None
    while more:
        page, more = await broker.store.list(TENANT, status, limit, after)
        assert len(page) <= limit
        seen += (one.id for one in page)
        after = seen[-1] if seen else None
    return seen


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 40])
async def test_no_page_loses_or_repeats_a_generation_of_the_same_millisecond(broker: Broker, limit: int) -> None:
    """In one shard and across shards. Ids of the same millisecond differ first in their shard, so a page can end
    between two."""
    await fresh(broker)
    dice = random.Random(limit)
    now = int(time.time() * 1000)
    crowded = SHARDS[dice.randrange(32)]
    ids = {new_id(now + dice.randrange(3), TENANT) for _ in range(60)}
    while sum(shard_of(gid) == crowded for gid in ids) < 25:
        ids.add(next(gid for gid in iter(lambda: new_id(now, TENANT), "") if shard_of(gid) == crowded))
    newest_first = sorted(await made(broker, *ids), reverse=True)
    assert await all_pages(broker, limit) == newest_first
    assert await all_pages(broker, limit, "queued") == newest_first


async def test_a_page_continues_after_a_deleted_generation(broker: Broker) -> None:
    await fresh(broker)
    now = int(time.time() * 1000)
    newest_first = sorted(await made(broker, *(new_id(now, TENANT) for _ in range(12))), reverse=True)
    for gone in newest_first[3:6]:
        await broker.delete(gone, TENANT)
    page, _ = await broker.store.list(TENANT, limit=20, after=newest_first[4])
    assert [one.id for one in page] == newest_first[6:]


@pytest.mark.parametrize("status", [None, "completed"])
async def test_expired_entries_are_removed_in_bulk(broker: Broker, status: str | None) -> None:
    """One script call removes about two hundred of them. No readable generation is removed."""
    await fresh(broker)
    now = int(time.time() * 1000)
    await expired(broker, 20_000, now - 86_400_000)
    alive = await made(broker, new_id(now - 86_399_000, TENANT), new_id(now - 90_000_000, TENANT), new_id(now, TENANT))
    before = await calls(broker, "evalsha")
    page, more = await broker.store.list(TENANT, status, 20)
    assert [one.id for one in page] == ([] if status else sorted(alive, reverse=True))
    assert not more
    assert await calls(broker, "evalsha") - before < 500
    assert await indexed(broker) == len(alive)


async def test_expired_entries_beyond_the_limit_of_one_request_are_left_to_the_next(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty page with `has_more`: the same request again continues where it stopped."""
    await fresh(broker)
    monkeypatch.setattr(lists, "LIST_ROUNDS", 1)
    now = int(time.time() * 1000)
    await expired(broker, 20_000, now - 86_400_000)
    [oldest] = await made(broker, new_id(now - 90_000_000, TENANT))
    assert await broker.store.list(TENANT, limit=5) == ([], True)
    left = await indexed(broker)
    assert left < 20_000
    assert await all_pages(broker, 5) == [oldest]
    assert await indexed(broker) == 1


async def test_counts_remove_expired_entries(broker: Broker) -> None:
    await fresh(broker)
    now = int(time.time() * 1000)
    await expired(broker, 3_000, now - 86_400_000)
    await made(broker, new_id(now, TENANT))
    before = await calls(broker, "evalsha")
    counts = await broker.store.counts(TENANT)
    assert counts["queued"] == 1
    assert counts["completed"] < 1_000
    assert await calls(broker, "evalsha") - before <= 2 * 2 * len(SHARDS)


async def test_the_lists_of_all_tenants_follow_each_change(broker: Broker) -> None:
    await fresh(broker)
    request = parse_request(request_body())
    ran, waits, deleted = [(await broker.store.create(request, tenant, None)).id for tenant in ("anna", "ben", "ben")]
    writer = await Writer(broker.store.redis, ran).claim()

    async def seen(status: str | None = None) -> set[tuple[str, str]]:
        page, _ = await broker.store.list(ALL_TENANTS, status)
        return {(one.id, one.tenant) for one in page}

    assert await seen() == {(ran, "anna"), (waits, "ben"), (deleted, "ben")}
    await broker.store.delete(deleted, "ben")
    assert await seen("queued") == {(waits, "ben")}
    assert await seen("in_progress") == {(ran, "anna")}
    await writer.append("Hello")
    await writer.finish()
    assert await seen("in_progress") == set()
    assert await seen("completed") == {(ran, "anna")}
    counts = await broker.store.counts(ALL_TENANTS)
    assert {status: count for status, count in counts.items() if count} == {"queued": 1, "completed": 1}


async def test_what_has_expired_leaves_the_lists_of_all_tenants_too(broker: Broker) -> None:
    """Whoever finds it: its tenant's next generation, its tenant's list, or that of all tenants."""
    await fresh(broker)
    redis = broker.store.redis
    request = parse_request(request_body())

    async def over(tenant: str) -> str:
        writer = await Writer(redis, (await broker.store.create(request, tenant, None)).id).claim()
        await writer.append("Hello")
        await writer.finish()
        await redis.execute("DEL", keys.log(writer.gid))
        return writer.gid

    async def listed(gid: str) -> bool:
        index = keys.index(shard_of(gid), ALL_TENANTS)
        return bool(
            await redis.execute("ZSCORE", index, gid) or await redis.execute("ZSCORE", f"{index}:completed", gid)
        )

    found_by_its_tenant, found_by_all = await over("anna"), await over("ben")
    assert await listed(found_by_its_tenant)
    assert await listed(found_by_all)
    await broker.store.list("anna")
    assert not await listed(found_by_its_tenant)
    assert await broker.store.list(ALL_TENANTS) == ([], False)
    assert not await listed(found_by_all)
