"""The outbox: what the scripts that end a generation put into it, leases, retries, redelivery."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from broker import Broker, connect
from broker.errors import DeliveryNotFound, GenerationGone, GenerationNotFound
from broker.ids import SHARDS, shard_of
from broker.store import commands, keys
from broker.webhooks.outbox import Attempt, Entry, Host
from tests.integration.broker.webhooks.scene import announced, entry_due, make_due, settings
from tests.support import CLAIM, REAPER_OBSERVATION, Writer, request_body

URL = "https://hooks.example.com/done?key=1"
FAILED = Attempt(1763790000.5, 0.25, 503, "refused")


async def due(broker: Broker) -> list[Host]:
    found: list[Host] = []
    for group in broker.outbox.groups:
        found += await broker.outbox.due_hosts(group)
    return found


async def taken(broker: Broker, count: int = 10) -> list[Entry]:
    return [entry for host in await due(broker) for entry in await broker.outbox.take(host, count, None)]


async def test_a_finished_generation(broker: Broker) -> None:
    """One entry, with a snapshot of the generation without its text."""
    gid = await announced(broker, URL, group="g1", metadata={"order": "17"})
    generation = await broker.get(gid)
    (entry,) = await taken(broker)
    assert (entry.gid, entry.event, entry.url, entry.tries) == (gid, "completed", URL, 0)
    assert entry.message_id == f"msg_{gid}_completed"
    body = json.loads(entry.body)
    assert body["type"] == "generation.completed"
    expected = generation.to_json()
    for name in ("text", "choices", "lease", "reset_reason", "prompt"):
        del expected[name]
    assert body["data"] == expected
    assert body["timestamp"].startswith("20")
    assert await taken(broker) == []  # it is leased


@pytest.mark.parametrize(
    ("events", "status", "found"),
    [
        (["failed"], "failed", ["failed"]),
        (["failed"], "completed", []),
        (["completed", "cancelled"], "failed", []),
        (["failed", "completed"], "completed", ["completed"]),
    ],
)
async def test_the_events_of_a_webhook(broker: Broker, events: list[str], status: str, found: list[str]) -> None:
    gid = await announced(broker, URL, status, webhook={"events": events})
    assert [entry.event for entry in await taken(broker)] == found
    assert (await broker.deliveries(gid)).data == []


async def reaped(broker: Broker, gid: str) -> bytes:
    """Let a reaper with one attempt at most find its lease over."""
    await broker.store.redis.execute("HSET", keys.meta(gid), "le", 1, "ls", 1)
    await broker.store.redis.execute("ZADD", keys.live(shard_of(gid)), 1, gid)
    lease, observed, latest = REAPER_OBSERVATION
    return (
        await commands.reap(
            broker.store.redis, gid, max_attempts=1, lease_ms=lease, observed_ms=observed, latest_ms=latest
        )
    ).outcome


async def test_a_generation_that_ends_from_outside(broker: Broker) -> None:
    """Cancelled, given up by a reaper, given up by a claim."""
    ids = [(await broker.enqueue(request_body(tokencast={"webhook": {"url": URL}}))).id for _ in range(3)]
    await broker.cancel(ids[0])
    await Writer(broker.store.redis, ids[1]).claim()
    assert await reaped(broker, ids[1]) == b"FAILED"
    names = [*commands.lifecycle_keys(ids[2]), keys.epoch(shard_of(ids[2]))]
    assert await broker.store.redis.run(CLAIM, names, [ids[2], "token", 1, 1000, "", 0]) == [b"EXHAUSTED"]
    found = {entry.gid: entry for entry in await taken(broker)}
    assert [found[gid].event for gid in ids] == ["cancelled", "failed", "failed"]
    assert json.loads(found[ids[1]].body)["data"]["error"]["code"] == "attempts_exhausted"
    await broker.cancel(ids[0])  # a second cancel changes nothing
    assert len(await broker.store.redis.execute("KEYS", "tc:*:hb:*")) == 3


async def test_a_default_webhook(broker: Broker) -> None:
    own = settings(broker.store.redis.url, webhook_url="https://default.example.com/")
    async with connect(settings=own) as other:
        plain, named = [
            await other.enqueue(request_body(**more)) for more in ({}, {"tokencast": {"webhook": {"url": URL}}})
        ]
        for generation in (plain, named):
            await other.cancel(generation.id)
        found = {entry.gid: entry.url for entry in await taken(other)}
    assert found == {plain.id: "https://default.example.com/", named.id: URL}


async def test_without_a_webhook_there_is_no_entry(broker: Broker) -> None:
    generation = await broker.enqueue(request_body())
    await broker.cancel(generation.id)
    assert await due(broker) == []
    assert (await broker.deliveries(generation.id)).retry_at is None
    with pytest.raises(DeliveryNotFound):
        await broker.redeliver(generation.id, 1)


@pytest.mark.parametrize("text", ["null", "[]", "not JSON", '{"url":1,"events":["cancelled"]}', '{"url":"https://a"}'])
async def test_a_webhook_that_cannot_be_read_does_not_stop_the_ending(broker: Broker, text: str) -> None:
    generation = await broker.enqueue(request_body())
    await broker.store.redis.execute("HSET", keys.meta(generation.id), "wh", text)
    assert (await broker.cancel(generation.id)).status == "cancelled"
    assert await due(broker) == []


async def test_long_metadata_and_usage_are_announced_whole(broker: Broker) -> None:
    """Lists and the activity leave them out."""
    labels = {f"key{number}": "é" * 500 for number in range(16)}
    generation = await broker.enqueue(request_body(metadata=labels, tokencast={"webhook": {"url": URL}}))
    usage = {"total_tokens": 7, "details": "d" * 3000}
    await broker.store.redis.execute("HSET", keys.meta(generation.id), "us", json.dumps(usage))
    writer = await Writer(broker.store.redis, generation.id).claim()
    await finish_with(broker, writer, usage)
    (entry,) = await taken(broker)
    data = json.loads(entry.body)["data"]
    assert (data["metadata"], data["usage"], data["status"]) == (labels, usage, "completed")
    assert entry.body == (await again(broker, entry)).body  # each repetition is the same


async def finish_with(broker: Broker, writer: Writer, usage: dict[str, Any]) -> None:
    command = commands.finish_command(
        *(writer.gid, writer.own, int(writer.attempt), 1),
        status="completed", finish_reason="stop", usage=json.dumps(usage), error="", choices="[]", tokens=0,
        items=("ok", 0, b"{}"),
    )  # fmt: skip
    names = command[3 : 3 + int(command[2])]
    reply = await broker.store.redis.run(commands.FINISH, [str(name) for name in names], command[3 + len(names) :])
    assert reply[0] == b"OK"


async def again(broker: Broker, entry: Entry) -> Entry:
    """The same entry, taken after its lease has ended."""
    await make_due(broker, entry.gid)
    (taken_again,) = await taken(broker)
    return taken_again


async def test_a_lease_ends(broker: Broker) -> None:
    """Of a process that died: another one has the same entry."""
    await announced(broker, URL)
    (entry,) = await taken(broker)
    assert await again(broker, entry) == entry


async def test_an_attempt_is_recorded_and_repeated(broker: Broker) -> None:
    gid = await announced(broker, URL)
    (entry,) = await taken(broker)
    assert await broker.outbox.record(entry, FAILED, 60.0, None) == "OK"
    first = await broker.deliveries(gid)
    assert [(one.n, one.at, one.status, one.error) for one in first.data] == [(1, FAILED.at, 503, "refused")]
    ended = (await broker.get(gid)).ended_at
    assert ended is not None
    assert first.retry_at is not None
    assert 55 < first.retry_at - ended < 120
    assert await taken(broker) == []
    second = await again(broker, entry)
    assert second.tries == 1
    assert await broker.outbox.record(second, Attempt(1.0, 0.1, 204, None), None, None) == "OK"
    assert [one.error for one in (await broker.deliveries(gid)).data] == ["refused", None]
    assert (await broker.deliveries(gid)).retry_at is None
    assert await broker.store.redis.execute("EXISTS", *map(keys.webhook_hosts, SHARDS)) == 0


async def test_it_is_given_up_after_a_day(broker: Broker) -> None:
    gid = await announced(broker, URL)
    (entry,) = await taken(broker)
    assert await broker.outbox.record(entry, FAILED, 86_390.0, None) == "OK"
    later = await again(broker, entry)
    assert await broker.outbox.record(later, FAILED, 86_410.0, None) == "OVER"
    assert (await broker.deliveries(gid)).retry_at is None
    assert await due(broker) == []


async def test_entries_without_a_body_do_not_add_up(broker: Broker) -> None:
    """A receiver was down for more than a day, or nobody delivered. Those that are redelivered by hand stay."""
    redis = broker.store.redis
    ended = await announced(broker, URL)
    host = (await redis.execute("HGET", keys.webhook_body(shard_of(ended), ended), "ho")).decode()
    generation = await broker.enqueue(request_body(tokencast={"webhook": {"url": URL}}))
    now, box = time.time() * 1000, keys.webhook_outbox(shard_of(generation.id), host)
    ages = {"a.completed": now - 26 * 3_600_000, "b.completed": now - 24 * 3_600_000, "c.completed": 1}
    for member, score in ages.items():
        await redis.execute("ZADD", box, score, member)
    await broker.cancel(generation.id)
    left = {member.decode() for member in await redis.execute("ZRANGE", box, 0, -1)}
    assert left - {f"{ended}.completed"} == {"b.completed", "c.completed", f"{generation.id}.cancelled"}


async def test_the_newest_fifty_attempts_are_kept(broker: Broker) -> None:
    gid = await announced(broker, URL)
    (entry,) = await taken(broker)
    for _ in range(60):
        await broker.outbox.record(entry, FAILED, 60.0, None)
    assert [one.n for one in (await broker.deliveries(gid)).data] == list(range(11, 61))
    with pytest.raises(DeliveryNotFound):
        await broker.redeliver(gid, 10)
    await broker.redeliver(gid, 11)


async def test_what_is_deleted_is_not_delivered(broker: Broker) -> None:
    """Neither before it is taken, nor again after an attempt that was under way."""
    waits, is_taken = await announced(broker, URL), await announced(broker, URL)
    entries = {entry.gid: entry for host in await due(broker) for entry in await broker.outbox.take(host, 9, None)}
    await make_due(broker, waits)
    for gid in (waits, is_taken):
        await broker.delete(gid)
        with pytest.raises(GenerationGone):
            await broker.deliveries(gid)
    assert await broker.outbox.record(entries[is_taken], FAILED, 0.0, None) == "GONE"
    assert await taken(broker) == []
    assert await broker.store.redis.execute("KEYS", "tc:*:h[kb]*") == []


async def test_the_announcement_outlives_the_generation(broker: Broker) -> None:
    gid = await announced(broker, URL, ttl_seconds=1)
    await broker.store.redis.execute("DEL", keys.log(gid), keys.meta(gid))
    (entry,) = await taken(broker)
    assert json.loads(entry.body)["data"]["id"] == gid


async def test_redelivery(broker: Broker) -> None:
    """At once, with the same id, also of one that was delivered or given up; before its first attempt there is none."""
    gid = await announced(broker, URL)
    with pytest.raises(DeliveryNotFound):
        await broker.redeliver(gid, 1)
    (entry,) = await taken(broker)
    await broker.outbox.record(entry, Attempt(1.0, 0.1, 410, "refused"), None, None)
    with pytest.raises(DeliveryNotFound):
        await broker.redeliver(gid, 2)
    with pytest.raises(GenerationNotFound):
        await broker.redeliver(gid, 1, "another")
    listed = await broker.redeliver(gid, 1)
    assert listed.retry_at is not None
    (second,) = await taken(broker)
    assert (second.message_id, second.body, second.tries) == (entry.message_id, entry.body, 1)
    assert await broker.outbox.record(second, FAILED, 86_390.0, None) == "OK"  # another day
    assert await entry_due(broker, gid) is not None


async def test_redelivery_during_an_attempt(broker: Broker) -> None:
    """If that attempt fails, the next one is still at once; if it succeeds, there is nothing left to do."""
    gid = await announced(broker, URL)
    (entry,) = await taken(broker)
    await broker.outbox.record(entry, FAILED, 0.0, None)
    (second,) = await taken(broker)
    await broker.redeliver(gid, 1)
    await broker.outbox.record(second, FAILED, 60.0, None)
    (third,) = await taken(broker)
    await broker.redeliver(gid, 1)
    await broker.outbox.record(third, Attempt(1.0, 0.1, 204, None), None, None)
    assert await taken(broker) == []


async def test_a_host_that_is_not_called_is_not_looked_at(broker: Broker) -> None:
    """Until its time, unless somebody redelivers by hand."""
    gid = await announced(broker, URL)
    (host,) = await due(broker)
    assert await broker.outbox.take(host, 2, 60.0) == []
    assert await due(broker) == []
    await broker.store.redis.execute("ZADD", keys.webhook_hosts(host.shard), 1, host.name)  # its time has come
    (entry,) = await broker.outbox.take(host, 2, None)
    await broker.outbox.record(entry, FAILED, 60.0, 60.0)
    assert await due(broker) == []
    await broker.redeliver(gid, 1)
    assert await due(broker) == [host]
    assert [entry.gid for entry in await broker.outbox.take(host, 2, 60.0)] == [gid]
    assert await due(broker) == []


async def test_waiting_entries_are_counted(broker: Broker) -> None:
    assert await broker.outbox.waiting() == 0
    for host in ("a", "b", "b"):
        await announced(broker, f"https://{host}.example.com/")
    assert await broker.outbox.waiting() == 3


async def test_one_host_in_any_spelling(broker: Broker) -> None:
    """User name, password, path and query do not make another host; the port does."""
    for url in (
        "https://hooks.example.com/a",
        "https://user:p%40ss@HOOKS.example.com/b?c=@d",
        "https://hooks.example.com?x=https://other.example.com",
        "https://hooks.example.com:8443/a",
    ):
        await announced(broker, url)
    assert len({host.name for host in await due(broker)}) == 2
