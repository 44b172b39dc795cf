"""Filtered lists on a real Redis: complete, and answered from the index with the fewest entries."""

from __future__ import annotations

import random
import re
import time
from itertools import product
from typing import Any

import pytest

from broker import Broker
from broker.generation import Generation
from broker.ids import SHARDS, created_ms, new_id, shard_of
from broker.request.body import parse_request
from broker.store import keys
from broker.store import listing as lists
from broker.store.filters import Filters
from tests.support import Writer, request_body

TENANT = "filters"
MODELS, GROUPS, REGIONS = ("small", "large"), (None, "day", "night"), (None, "eu", "us")
STATUSES = ("queued", "in_progress", "completed", "failed", "cancelled")
CODES = ("upstream_error", "timeout")


async def make(broker: Broker, gid: str | None = None, **more: Any) -> str:
    created = await broker.store.create(parse_request(request_body(**more)), TENANT, None, gid)
    return created.id


async def end(broker: Broker, gid: str, status: str, code: str = "timeout") -> None:
    if status == "cancelled":
        await broker.store.cancel(gid, TENANT)
    elif status != "queued":
        writer = await Writer(broker.store.redis, gid).claim()
        if status == "failed":
            data = b'{"error":{"message":"\\"code\\":\\"x\\"","type":"server_error","code":"%b"}}' % code.encode()
            await writer.finish("failed", data)
        elif status == "completed":
            await writer.finish()


async def history(broker: Broker) -> list[str]:
    """Generations with every combination of attributes, some of them created in the same millisecond."""
    dice, now, made = random.Random(7), int(time.time() * 1000), list[str]()
    for model, group, region, status in product(MODELS, GROUPS, REGIONS, STATUSES):
        options = {"group": group} if group else {}
        metadata = {"region": region, "n": str(dice.randrange(3))} if region else {}
        gid = new_id(now + dice.randrange(60), TENANT)
        made.append(await make(broker, gid, model=model, metadata=metadata, tokencast=options))
        await end(broker, gid, status, dice.choice(CODES))
    return sorted(made, reverse=True)


def meets(one: Generation, filters: Filters) -> bool:
    return (
        (not filters.status or one.status in filters.status)
        and filters.model in (None, one.model)
        and filters.group in (None, one.group)
        and (filters.code is None or (one.error or {}).get("code") == filters.code)
        and filters.metadata.items() <= one.metadata.items()
        and (filters.since_ms is None or created_ms(one.id) >= filters.since_ms)
        and (filters.until_ms is None or created_ms(one.id) < filters.until_ms)
    )


def draw(dice: random.Random, oldest: int) -> Filters:
    span = sorted(oldest + dice.randrange(60) for _ in range(2))
    metadata = [("region", "eu"), ("region", "us"), ("n", "1"), ("n", "no such")]
    return Filters(
        status=frozenset(dice.sample(STATUSES, dice.choice([0, 0, 1, 2, 5]))),
        model=dice.choice([None, None, "small", "unknown"]),
        code=dice.choice([None, None, None, *CODES]),
        group=dice.choice([None, None, "day"]),
        metadata=dict(dice.sample(metadata, dice.choice([0, 0, 1, 2]))),
        since_ms=dice.choice([None, span[0]]),
        until_ms=dice.choice([None, span[1]]),
    )


async def every_page(broker: Broker, filters: Filters, limit: int) -> list[str]:
    found: list[str] = []
    after: str | None = None
    more = True
    while more:
        page, more, after = await broker.store.find(TENANT, filters, limit, after)
        assert len(page) <= limit
        found += (one.id for one in page)
    return found


async def test_every_combination_finds_what_meets_it_and_no_other(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await broker.store.redis.execute("FLUSHALL")
    made = await history(broker)
    everything = [await broker.store.state(gid, TENANT) for gid in made]
    dice, oldest = random.Random(11), created_ms(made[-1])
    for number in range(120):
        filters, limit = draw(dice, oldest), dice.choice([1, 3, 40])
        monkeypatch.setattr(lists, "CHECKED_ROWS", dice.choice([4, 200]))
        expected = [one.id for one in everything if meets(one, filters)]
        assert await every_page(broker, filters, limit) == expected, (number, filters)


async def calls(broker: Broker, command: str) -> int:
    stats = (await broker.store.redis.execute("INFO", "commandstats")).decode()
    found = re.search(rf"cmdstat_{command}:calls=(\d+)", stats)
    return int(found[1]) if found else 0


@pytest.mark.parametrize(
    "rare",
    [
        Filters(model="rare"),
        Filters(group="rare"),
        Filters(metadata={"order": "17"}),
        Filters(code="upstream_error"),
        Filters(status=frozenset({"failed", "queued"}), metadata={"all": "same", "order": "17"}),
    ],
    ids=["model", "group", "metadata", "code", "all"],
)
async def test_a_filter_reads_the_rows_of_its_own_index_only(broker: Broker, rare: Filters) -> None:
    await broker.store.redis.execute("FLUSHALL")
    now = int(time.time() * 1000)
    for number in range(300):
        await make(broker, new_id(now + number, TENANT), metadata={"all": "same", "order": "1"})
    wanted = await make(
        broker, new_id(now, TENANT), model="rare", metadata={"all": "same", "order": "17"}, tokencast={"group": "rare"}
    )
    await end(broker, wanted, "failed", "upstream_error")
    before = await calls(broker, "hmget")
    assert await every_page(broker, rare, 20) == [wanted]
    assert await calls(broker, "hmget") - before == 1


async def test_a_page_that_finds_nothing_says_where_to_go_on(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bounded number of rows is checked; `last` is after those that do not match."""
    await broker.store.redis.execute("FLUSHALL")
    monkeypatch.setattr(lists, "LIST_ROUNDS", 2)
    monkeypatch.setattr(lists, "CHECKED_ROWS", 5)
    now = int(time.time() * 1000)
    for number in range(30):
        await make(broker, new_id(now + number, TENANT), metadata={"a": "1"}, tokencast={"group": "g"})
    oldest = await make(broker, new_id(now - 1, TENANT), metadata={"a": "1", "b": "2"}, tokencast={"group": "g"})
    for number in range(30, 70):
        await make(broker, new_id(now + number, TENANT), metadata={"b": "2"})
    filters = Filters(group="g", metadata={"b": "2"})
    page, more, last = await broker.store.find(TENANT, filters, 3)
    assert (page, more) == ([], True)
    assert last is not None
    assert created_ms(last) == now + 20
    assert await every_page(broker, filters, 3) == [oldest]


async def entries(broker: Broker, key: str) -> list[str]:
    return [member.decode() for member in await broker.store.redis.execute("ZRANGE", key, 0, -1)]


async def test_expired_generations_leave_an_index_with_the_next_one_or_with_a_list(broker: Broker) -> None:
    await broker.store.redis.execute("FLUSHALL")
    now, shard = int(time.time() * 1000), SHARDS[3]
    gids = [gid for gid in (new_id(now + n // 100, TENANT) for n in range(4000)) if shard_of(gid) == shard][:8]
    index = keys.metadata_index(shard, TENANT, "a", "1")
    for gid in gids:
        await make(broker, gid, metadata={"a": "1"})
    oldest_first = await entries(broker, index)
    await broker.store.redis.execute(
        "DEL", *(key for gid in oldest_first[:2] for key in (keys.meta(gid), keys.log(gid)))
    )
    newest = next(gid for gid in iter(lambda: new_id(now + 99, TENANT), "") if shard_of(gid) == shard)
    await make(broker, newest, metadata={"a": "1"})
    assert await entries(broker, index) == [*oldest_first[2:], newest]
    await broker.store.redis.execute("DEL", keys.meta(oldest_first[4]), keys.log(oldest_first[4]))
    assert len(await every_page(broker, Filters(metadata={"a": "1"}), 20)) == 6
    assert await entries(broker, index) == [*oldest_first[2:4], *oldest_first[5:], newest]


async def test_a_deleted_generation_leaves_all_its_indexes(broker: Broker) -> None:
    await broker.store.redis.execute("FLUSHALL")
    gid = await make(broker, metadata={"a": "1"}, tokencast={"group": "g"})
    await end(broker, gid, "failed")
    shard = shard_of(gid)
    indexes = [
        keys.model_index(shard, TENANT, "m"),
        keys.metadata_index(shard, TENANT, "a", "1"),
        keys.group_index(shard, TENANT, "g"),
        keys.code_index(shard, TENANT, "timeout"),
    ]
    assert [await entries(broker, index) for index in indexes] == [[gid]] * 4
    await broker.store.delete(gid, TENANT)
    assert [await entries(broker, index) for index in indexes] == [[]] * 4


async def test_the_index_of_a_single_generation_expires_with_it(broker: Broker) -> None:
    await broker.store.redis.execute("FLUSHALL")
    gid = await make(broker, metadata={"order": "17"}, ttl_seconds=60)
    index = keys.metadata_index(shard_of(gid), TENANT, "order", "17")
    assert await broker.store.redis.execute("TTL", index) > 31 * 86400
    await end(broker, gid, "completed")
    assert 0 < await broker.store.redis.execute("TTL", index) <= 3660
