"""Searching, cancelling and deleting the generations that match, on a real Redis."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from broker import Broker, Generation, GenerationGone, InvalidRequest, connect
from broker.broker import Page
from broker.bulk.operations import Cancelled, Deleted
from broker.dev.embedded_redis import EmbeddedRedis
from tests.integration.broker.webhooks.scene import settings
from tests.support import Writer, request_body


@pytest.fixture
async def broker(redis: EmbeddedRedis) -> AsyncGenerator[Broker, None]:
    """A broker that has seen no other data than that of its test."""
    async with connect(settings=settings(redis.url)) as connected:
        await connected.store.redis.execute("FLUSHALL")
        yield connected


async def enqueue(broker: Broker, prompt: str = "Hello", **more: Any) -> str:
    return (await broker.enqueue(request_body(prompt, **more))).id


def ids(done: Page | Cancelled | Deleted) -> list[str]:
    return [one.id for one in done.data if isinstance(one, Generation)]


async def test_a_search_finds_words_of_a_generation(broker: Broker) -> None:
    """In its id, its metadata, the first line of its prompt and its names; all words have to occur."""
    first = await enqueue(broker, "\n  Why is the SKY   blue?\nBriefly.", metadata={"order": "Blue-17"})
    second = await enqueue(broker, "Why is grass green?", model="sim", tokencast={"group": "Meadow"})
    await enqueue(broker, "x" * 200)
    writer = await Writer(broker.store.redis, second).claim()
    await writer.finish("failed", b'{"error":{"message":"m","type":"t","code":"idle_timeout"}}')

    async def found(search: str, **more: Any) -> list[str]:
        return ids(await broker.list(search=search, **more))

    assert await found("why") == [second, first]
    for words in ("why sky blue?", "ORDER=blue", first, first[:30], first[-6:]):
        assert await found(words) == [first], words
    for words in ("meadow", "sim default", "idle_timeout grass"):
        assert await found(words) == [second], words
    for words in ("briefly", "sky green", f"gen_{first[5:]}", "gen_zzzzzzzzzz", "gen_i"):
        assert await found(words) == [], words
    assert await found("why", status="failed", upstream="default") == [second]
    assert await found("", upstream="another") == []
    assert [one.prompt for one in (await broker.list()).data] == [
        "x" * 119 + "…",
        "Why is grass green?",
        "Why is the SKY blue?",
    ]
    assert (await broker.retry(second)).prompt == "Why is grass green?"
    with pytest.raises(InvalidRequest, match="200"):
        await found("x" * 201)


async def test_all_that_match_are_cancelled(broker: Broker) -> None:
    waiting = [await enqueue(broker, metadata={"batch": "b"}) for _ in range(3)]
    other = await enqueue(broker)
    running = await enqueue(broker, metadata={"batch": "b"})
    await Writer(broker.store.redis, running).claim()
    tried = await broker.cancel_all(metadata={"batch": "b"}, dry_run=True)
    assert (tried.matched, tried.cancelled, tried.has_more) == (4, 0, False)
    assert ids(tried) == [running, *waiting[::-1]]
    done = await broker.cancel_all(metadata={"batch": "b"}, status="queued", limit=2)
    assert (done.matched, done.cancelled, done.has_more) == (2, 2, True)
    assert [(one.id, one.status) for one in done.data if isinstance(one, Generation)] == [
        (gid, "cancelled") for gid in waiting[:0:-1]
    ]
    assert (await broker.cancel_all(metadata={"batch": "b"})).cancelled == 2
    assert await broker.store.counts("default") == {
        **dict.fromkeys(("in_progress", "completed", "failed"), 0),
        "queued": 1,
        "cancelled": 4,
    }
    assert (await broker.get(other)).status == "queued"
    assert (await broker.cancel_all(metadata={"batch": "b"})).matched == 0
    assert (await broker.queue_state()).depth == 2  # with the ticket of the running one, which no worker has pulled
    assert sum(broker.ended.values()) == 4


async def test_all_that_match_are_deleted(broker: Broker) -> None:
    """The numbers by status are those of what is left; what had not ended counts as cancelled."""
    ended = [await enqueue(broker, tokencast={"group": "g"}) for _ in range(2)]
    for gid in ended:
        await (await Writer(broker.store.redis, gid).claim()).finish()
    waiting, kept = await enqueue(broker, "delete me"), await enqueue(broker)
    with pytest.raises(InvalidRequest):
        await broker.delete_all()
    tried = await broker.delete_all(status=["completed", "queued"], dry_run=True)
    assert (tried.matched, tried.deleted) == (4, 0)
    done = await broker.delete_all(status="completed", group="g")
    assert (done.matched, done.deleted, ids(done)) == (2, 2, ended[::-1])
    assert (await broker.delete_all(status="queued", search="delete me")).deleted == 1
    assert await broker.store.counts("default") == {
        **dict.fromkeys(("in_progress", "completed", "failed", "cancelled"), 0),
        "queued": 1,
    }
    assert ids(await broker.list()) == [kept]
    for gid in (*ended, waiting):
        with pytest.raises(GenerationGone):
            await broker.get(gid)
    assert list(broker.ended.values()) == [1]


async def test_the_first_line_of_a_prompt_is_not_stored_if_the_settings_say_so(redis: EmbeddedRedis) -> None:
    async with connect(settings=settings(redis.url)) as storing:
        old = await storing.cancel(await enqueue(storing))
    assert old.prompt == "Hello"
    async with connect(settings=settings(redis.url, prompt_preview=False)) as broker:
        gid = (await broker.enqueue(request_body())).id
        again = await broker.retry(old.id)
        assert (again.prompt, (await broker.get(gid)).prompt, (await broker.get(again.id)).prompt) == (None, None, None)
        assert {old.id, gid, again.id} & set(ids(await broker.list(search="hello"))) == {old.id}
