"""The activity: lifecycle events of all generations, live and after a reconnect."""

from __future__ import annotations

import asyncio
import hashlib
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from typing import Any

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from broker.ids import SHARDS
from tests.acceptance.edge.peer import connections, linux, peer
from tests.support import Frame, Gateway, Writer, clients_by_last_command, gateway, gather, wait_until, worker

PATH = "/v1/activity"


async def start_generation(api: Gateway, broker: Broker, **headers: str) -> Writer:
    return await Writer(broker.store.redis, (await api.create(**headers))["id"]).claim()


async def completed_generation(api: Gateway, broker: Broker, **headers: str) -> str:
    writer = await start_generation(api, broker, **headers)
    await writer.append("a word")
    await writer.finish()
    return writer.gid


def follow_activity(api: Gateway, query: str = "", **headers: str) -> AsyncIterator[Frame]:
    return api.stream("GET", PATH + query, headers=headers)


async def until(stream: AsyncIterator[Frame], gid: str, event: str) -> list[Frame]:
    """All frames up to this event."""
    shown: list[Frame] = []
    async with asyncio.timeout(30):
        async for frame in stream:
            shown.append(frame)
            if frame.event == event and frame.json["id"] == gid:
                return shown
    raise AssertionError("the stream ended")


def events_of(frames: list[Frame], gid: str) -> list[str | None]:
    return [frame.event for frame in frames if frame.data and frame.json.get("id") == gid]


NOT_IN_LISTS = {"text", "choices", "lease", "reset_reason"}


async def test_the_activity_shows_the_lifecycle_of_a_generation(api: Gateway, broker: Broker) -> None:
    """Each event contains the generation's summary at that time, without text; the ids only grow."""
    async with aclosing(follow_activity(api, "?after=latest")) as stream:
        bookmark = await anext(stream)
        assert (bookmark.event, bookmark.data, bookmark.comment) == (None, None, False)
        generation = await api.create(body_without_model() | {"model": "m", "metadata": {"order": "17"}})
        gid = generation["id"]
        (created,) = await until(stream, gid, "created")
        summary = {key: value for key, value in generation.items() if key not in NOT_IN_LISTS}
        assert created.json == summary
        writer = await Writer(broker.store.redis, gid).claim()
        await writer.append("secret words")
        shown = await until(stream, gid, "started")
        await writer.finish()
        shown += await until(stream, gid, "completed")
        (listed,) = [one for one in (await api.http.get("/v1/generations")).json()["data"] if one["id"] == gid]
        assert shown[-1].json == listed
    assert events_of(shown, gid) == ["started", "completed"]
    assert {frame.json["prompt"] for frame in shown if frame.event} == {"secret prompt"}
    assert "secret words" not in "".join(frame.data or "" for frame in shown)
    ids = [int(frame.id or 0) for frame in (bookmark, created, *shown)]
    assert ids == sorted(ids)
    assert ids[0] > 0


def body_without_model() -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "secret prompt"}]}


async def test_the_activity_shows_every_ending_and_reset(api: Gateway, broker: Broker) -> None:
    async with aclosing(follow_activity(api, "?after=latest")) as stream:
        await anext(stream)
        failing, cancelled, deleted, lost = [await start_generation(api, broker) for _ in range(4)]
        await failing.finish("failed", b'{"error":{"message":"m","type":"server_error","code":"c"}}')
        await api.http.post(f"/v1/generations/{cancelled.gid}/cancel")
        await api.http.delete(f"/v1/generations/{deleted.gid}")
        await broker.store.redis.execute("HSET", f"tc:{{{lost.gid[14:16]}}}:m:{lost.gid}", "st", "queued", "own", "")
        await Writer(broker.store.redis, lost.gid).claim()
        shown = await until(stream, lost.gid, "reset")
        missing = {failing.gid, cancelled.gid, deleted.gid}
        while missing:
            for frame in shown:
                if frame.event in ("failed", "cancelled", "gone"):
                    missing.discard(frame.json["id"])
            if missing:
                shown.append(await anext(stream))
    by_generation = {gid: events_of(shown, gid) for gid in (failing.gid, cancelled.gid, deleted.gid, lost.gid)}
    assert by_generation == {
        failing.gid: ["created", "started", "failed"],
        cancelled.gid: ["created", "started", "cancelled"],
        deleted.gid: ["created", "started", "gone"],
        lost.gid: ["created", "started", "reset"],
    }
    (failed,) = [frame.json for frame in shown if frame.event == "failed"]
    assert (failed["status"], failed["error"]["code"]) == ("failed", "c")


async def test_a_busy_upstream_is_announced_as_waiting(redis: EmbeddedRedis, sim: str, api: Gateway) -> None:
    async with worker(redis.url, sim), aclosing(follow_activity(api, "?after=latest")) as stream:
        await anext(stream)
        prompt = "[[sim fault=429 retry_after=0.1 times=1]]"
        gid = (await api.create({"model": "sim", "messages": [{"role": "user", "content": prompt}]}))["id"]
        shown = await until(stream, gid, "completed")
    assert events_of(shown, gid) == ["created", "waiting", "started", "completed"]


async def test_a_new_subscriber_gets_retained_and_then_live_events(api: Gateway, broker: Broker) -> None:
    before = await completed_generation(api, broker)
    async with aclosing(follow_activity(api)) as stream:
        shown = await until(stream, before, "completed")
        after = await completed_generation(api, broker)
        shown += await until(stream, after, "completed")
    for gid in (before, after):
        assert events_of(shown, gid) == ["created", "started", "completed"]


async def test_a_reconnecting_subscriber_misses_no_event(redis: EmbeddedRedis, api: Gateway, broker: Broker) -> None:
    """At the same gateway, at another one, and with only the bookmark; also by `?after=`, which the header
    overrides."""
    async with gateway(redis.url) as other:
        async with aclosing(follow_activity(api, "?after=latest")) as stream:
            bookmark = (await anext(stream)).id or ""
            first = await completed_generation(api, broker)
            shown = await until(stream, first, "completed")
        second = await completed_generation(api, broker)
        for target in (api, other):
            for query, header in (
                ("", {"Last-Event-ID": shown[-1].id or ""}),
                ("?after=latest", {"Last-Event-ID": bookmark}),
                (f"?after={bookmark}", {}),
            ):
                async with aclosing(follow_activity(target, query, **header)) as stream:
                    again = await until(stream, second, "completed")
                assert events_of(again, second) == ["created", "started", "completed"]
                assert "gap" not in [frame.event for frame in again]


async def test_events_that_are_no_longer_retained_are_a_gap(api: Gateway, broker: Broker) -> None:
    """The list has the rest. An invalid id in the header starts from the beginning; in the query it is refused."""
    gid = await completed_generation(api, broker)
    async with aclosing(follow_activity(api, **{"Last-Event-ID": "1000"})) as stream:
        gap = await anext(stream)
        assert (gap.event, gap.id, gap.json["requested"]) == ("gap", None, "1000")
        assert int(gap.json["earliest"]) > 1000
        await until(stream, gid, "completed")
    async with aclosing(follow_activity(api, **{"Last-Event-ID": "0-1"})) as stream:
        assert (await anext(stream)).event == "created"
    for after in ("0-1", "yesterday", "-1"):
        response = await api.http.get(f"{PATH}?after={after}")
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_cursor")


async def test_a_tenant_sees_only_its_own_generations(redis: EmbeddedRedis, broker: Broker) -> None:
    tenants = ",".join(f"{name}:{hashlib.sha256(f'key-{name}'.encode()).hexdigest()}" for name in ("anna", "ben"))
    anna, ben = ({"authorization": f"Bearer key-{name}"} for name in ("anna", "ben"))
    async with gateway(redis.url, TOKENCAST_API_KEYS=tenants) as api:
        async with aclosing(follow_activity(api, **anna)) as hers, aclosing(follow_activity(api, **ben)) as his:
            xread_count = asyncio.create_task(anext(his)), asyncio.create_task(anext(hers))
            his_first = await completed_generation(api, broker, **ben)
            her_first = await completed_generation(api, broker, **anna)
            heads = [await one for one in xread_count]
            shown = [[frame] for frame in heads]
            shown[0] += await until(his, his_first, "completed")
            shown[1] += await until(hers, her_first, "completed")
        for frames, gid in zip(shown, (his_first, her_first), strict=True):
            assert {frame.json["id"] for frame in frames} == {gid}
            assert events_of(frames, gid) == ["created", "started", "completed"]
        async with aclosing(follow_activity(api, **anna)) as again:
            assert {frame.json["id"] for frame in await until(again, her_first, "completed")} == {her_first}
        assert (await api.http.get(PATH)).status_code == 401
        made = (await api.http.post(f"/v1/generations/{her_first}/token", headers=anna)).json()
        assert (await api.http.get(f"{PATH}?token={made['token']}")).status_code == 401


async def test_subscribers_of_the_activity_share_one_connection_to_redis(redis: EmbeddedRedis, broker: Broker) -> None:
    """Fifty subscribers share one blocked connection, which is released when they have disconnected."""
    async with gateway(redis.url) as api:

        async def xread_count() -> int:
            return len(await clients_by_last_command(broker.store.redis, "xread"))

        before = await xread_count()
        async with AsyncExitStack() as stack:
            watchers = [
                await stack.enter_async_context(aclosing(follow_activity(api, "?after=latest"))) for _ in range(50)
            ]
            for watcher in watchers:
                await anext(watcher)
            await wait_until(xread_count)
            gid = await completed_generation(api, broker)
            streams = await gather(*(until(watcher, gid, "completed") for watcher in watchers))
            assert all(stream == streams[0] for stream in streams)
            assert await xread_count() - before == 1

        async def is_unwatched() -> bool:
            return await xread_count() == before

        await wait_until(is_unwatched)


async def test_the_activity_continues_when_redis_comes_back(own_redis: EmbeddedRedis) -> None:
    """Subscribers see a pause; those that connect meanwhile are told to reconnect."""
    async with gateway(own_redis.url) as api, aclosing(follow_activity(api)) as stream:
        await until(stream, (await api.create())["id"], "created")
        own_redis.kill()
        async with gateway(own_redis.url, TOKENCAST_DRAIN="0") as other:
            later = await other.http.get(PATH)
            assert (later.status_code, later.content[:7]) == (200, b"retry: ")
            assert "never retrieved" not in other.process.output
        await own_redis.restart()

        async def created_id() -> str | None:
            response = await api.http.post("/v1/generations", json=body_without_model() | {"model": "m"})
            return response.json()["id"] if response.status_code == 202 else None

        await until(stream, await wait_until(created_id), "created")
        assert "Traceback" not in api.process.output


async def test_the_activity_has_heartbeats_and_ends_at_a_drain(redis: EmbeddedRedis) -> None:
    async with gateway(redis.url, TOKENCAST_HEARTBEAT="0.15") as api:
        async with aclosing(follow_activity(api, "?after=latest")) as stream:
            assert (await anext(stream)).id
            assert (await anext(stream)).comment
            api.process.send(signal.SIGTERM)
            rest = [frame async for frame in stream if not frame.comment]
        assert [frame.raw.startswith(b"retry: ") for frame in rest] == [True]
        assert await api.process.wait() in (0, -signal.SIGTERM)
        assert "Traceback" not in api.process.output
        assert "never retrieved" not in api.process.output


@linux
async def test_a_subscriber_that_does_not_read_is_dropped(redis: EmbeddedRedis, broker: Broker) -> None:
    """It falls behind the retained window; other subscribers get all events."""
    limits = {"TOKENCAST_SEND_TIMEOUT": "0.5", "TOKENCAST_HEARTBEAT": "0.5"}
    metadata = {str(number): "x" * 500 for number in range(16)}
    async with gateway(redis.url, **limits) as api, peer(api, receive_buffer=4096) as stalled:
        stalled.get(PATH)
        await stalled.until(b"\r\n\r\n")
        async with aclosing(follow_activity(api, "?after=latest")) as stream:
            await anext(stream)
            for _ in range(20):
                created = await gather(
                    *(api.create(body_without_model() | {"model": "m", "metadata": metadata}) for _ in range(20))
                )
                missing = {one["id"] for one in created}
                while missing:
                    missing.discard((await anext(stream)).json["id"])
            await wait_until(lambda: stalled.port not in connections(api))
        async with aclosing(follow_activity(api)) as again:
            kept = await until(again, created[-1]["id"], "created")
        assert sum(len(frame.raw) for frame in kept) < 3 << 20


async def test_no_event_is_missing_while_hundreds_arrive(own_redis: EmbeddedRedis) -> None:
    """From all shards. A subscriber that is disconnected after every few events and reconnects with its id gets all of
    them too."""
    async with gateway(own_redis.url) as api:
        async with aclosing(follow_activity(api, "?after=latest")) as stream:
            bookmark = (await anext(stream)).id or ""
            creating = asyncio.gather(*(api.create() for _ in range(300)))
            cut, last = set[str](), bookmark

            async def reconnect_repeatedly() -> None:
                nonlocal last
                while len(cut) < 300:
                    async with aclosing(follow_activity(api, **{"Last-Event-ID": last})) as again:
                        seen = 0
                        async for frame in again:
                            last = frame.id or last
                            seen += frame.json["id"] not in cut
                            cut.add(frame.json["id"])
                            if seen == 40 or len(cut) >= 300:
                                break

            coming = asyncio.create_task(reconnect_repeatedly())
            expected = {one["id"] for one in await creating}
            shown: set[str] = set()
            async with asyncio.timeout(30):
                while not expected <= shown:
                    shown.add((await anext(stream)).json["id"])
                await coming
        assert cut == shown == expected
        assert {gid[14:16] for gid in expected} <= set(SHARDS)
