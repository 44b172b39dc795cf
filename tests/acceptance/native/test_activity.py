"""Watching all generations: their beginnings and ends as they happen, and again for who comes back."""

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


async def claimed(api: Gateway, broker: Broker, **headers: str) -> Writer:
    return await Writer(broker.store.redis, (await api.create(**headers))["id"]).claim()


async def finished(api: Gateway, broker: Broker, **headers: str) -> str:
    writer = await claimed(api, broker, **headers)
    await writer.append("a word")
    await writer.finish()
    return writer.gid


def watch(api: Gateway, query: str = "", **headers: str) -> AsyncIterator[Frame]:
    return api.stream("GET", PATH + query, headers=headers)


async def until(stream: AsyncIterator[Frame], gid: str, event: str) -> list[Frame]:
    """All frames up to this one."""
    shown: list[Frame] = []
    async with asyncio.timeout(30):
        async for frame in stream:
            shown.append(frame)
            if frame.event == event and frame.json["id"] == gid:
                return shown
    raise AssertionError("the stream ended")


def events_of(frames: list[Frame], gid: str) -> list[str | None]:
    return [frame.event for frame in frames if frame.data and frame.json.get("id") == gid]


async def test_a_generation_s_life_as_it_happens(api: Gateway, broker: Broker) -> None:
    """Each event with what the list says of it then; no text; the ids go up."""
    async with aclosing(watch(api, "?after=latest")) as stream:
        bookmark = await anext(stream)
        assert (bookmark.event, bookmark.data, bookmark.comment) == (None, None, False)
        generation = await api.create(body() | {"model": "m", "metadata": {"order": "17"}})
        gid = generation["id"]
        (created,) = await until(stream, gid, "created")
        summary = {key: value for key, value in generation.items() if key not in ("text", "choices")}
        assert created.json == summary
        writer = await Writer(broker.store.redis, gid).claim()
        await writer.append("secret words")
        shown = await until(stream, gid, "started")
        await writer.finish()
        shown += await until(stream, gid, "completed")
        (listed,) = [one for one in (await api.http.get("/v1/generations")).json()["data"] if one["id"] == gid]
        assert shown[-1].json == listed
    assert events_of(shown, gid) == ["started", "completed"]
    assert "secret" not in "".join(frame.data or "" for frame in shown)
    ids = [int(frame.id or 0) for frame in (bookmark, created, *shown)]
    assert ids == sorted(ids)
    assert ids[0] > 0


def body() -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "secret prompt"}]}


async def test_every_way_to_end_or_begin_again(api: Gateway, broker: Broker) -> None:
    async with aclosing(watch(api, "?after=latest")) as stream:
        await anext(stream)
        failing, cancelled, deleted, lost = [await claimed(api, broker) for _ in range(4)]
        await failing.finish("failed", b'{"error":{"message":"m","type":"server_error","code":"c"}}')
        await api.http.post(f"/v1/generations/{cancelled.gid}/cancel")
        await api.http.delete(f"/v1/generations/{deleted.gid}")
        await broker.store.redis.execute("HSET", f"tc:{{{lost.gid[14:16]}}}:m:{lost.gid}", "st", "queued")
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


async def test_a_busy_upstream_is_said(redis: EmbeddedRedis, sim: str, api: Gateway) -> None:
    async with worker(redis.url, sim), aclosing(watch(api, "?after=latest")) as stream:
        await anext(stream)
        prompt = "[[sim fault=429 retry_after=0.1 times=1]]"
        gid = (await api.create({"model": "sim", "messages": [{"role": "user", "content": prompt}]}))["id"]
        shown = await until(stream, gid, "completed")
    assert events_of(shown, gid) == ["created", "started", "waiting", "completed"]


async def test_who_comes_anew_gets_what_is_kept_and_then_what_comes(api: Gateway, broker: Broker) -> None:
    before = await finished(api, broker)
    async with aclosing(watch(api)) as stream:
        shown = await until(stream, before, "completed")
        after = await finished(api, broker)
        shown += await until(stream, after, "completed")
    for gid in (before, after):
        assert events_of(shown, gid) == ["created", "started", "completed"]


async def test_who_comes_back_misses_nothing(redis: EmbeddedRedis, api: Gateway, broker: Broker) -> None:
    """At the same gateway, at another one, and where nothing but the bookmark was had; also by `?after=`, over which
    the header wins."""
    async with gateway(redis.url) as other:
        async with aclosing(watch(api, "?after=latest")) as stream:
            bookmark = (await anext(stream)).id or ""
            first = await finished(api, broker)
            shown = await until(stream, first, "completed")
        second = await finished(api, broker)
        for back in (api, other):
            for query, header in (
                ("", {"Last-Event-ID": shown[-1].id or ""}),
                ("?after=latest", {"Last-Event-ID": bookmark}),
                (f"?after={bookmark}", {}),
            ):
                async with aclosing(watch(back, query, **header)) as stream:
                    again = await until(stream, second, "completed")
                assert events_of(again, second) == ["created", "started", "completed"]
                assert "gap" not in [frame.event for frame in again]


async def test_what_is_not_kept_any_more_is_a_gap(api: Gateway, broker: Broker) -> None:
    """The list has the rest. A header that is no id begins anew; in the query it is refused."""
    gid = await finished(api, broker)
    async with aclosing(watch(api, **{"Last-Event-ID": "1000"})) as stream:
        gap = await anext(stream)
        assert (gap.event, gap.id, gap.json["requested"]) == ("gap", None, "1000")
        assert int(gap.json["earliest"]) > 1000
        await until(stream, gid, "completed")
    async with aclosing(watch(api, **{"Last-Event-ID": "0-1"})) as stream:
        assert (await anext(stream)).event == "created"
    for after in ("0-1", "yesterday", "-1"):
        response = await api.http.get(f"{PATH}?after={after}")
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_cursor")


async def test_a_tenant_watches_its_own(redis: EmbeddedRedis, broker: Broker) -> None:
    tenants = ",".join(f"{name}:{hashlib.sha256(f'key-{name}'.encode()).hexdigest()}" for name in ("anna", "ben"))
    anna, ben = ({"authorization": f"Bearer key-{name}"} for name in ("anna", "ben"))
    async with gateway(redis.url, TOKENCAST_API_KEYS=tenants) as api:
        async with aclosing(watch(api, **anna)) as hers, aclosing(watch(api, **ben)) as his:
            reading = asyncio.create_task(anext(his)), asyncio.create_task(anext(hers))
            his_first = await finished(api, broker, **ben)
            her_first = await finished(api, broker, **anna)
            heads = [await one for one in reading]
            shown = [[frame] for frame in heads]
            shown[0] += await until(his, his_first, "completed")
            shown[1] += await until(hers, her_first, "completed")
        for frames, gid in zip(shown, (his_first, her_first), strict=True):
            assert {frame.json["id"] for frame in frames} == {gid}
            assert events_of(frames, gid) == ["created", "started", "completed"]
        async with aclosing(watch(api, **anna)) as again:
            assert {frame.json["id"] for frame in await until(again, her_first, "completed")} == {her_first}
        assert (await api.http.get(PATH)).status_code == 401
        made = (await api.http.post(f"/v1/generations/{her_first}/token", headers=anna)).json()
        assert (await api.http.get(f"{PATH}?token={made['token']}")).status_code == 401


async def test_watchers_cost_redis_nothing(redis: EmbeddedRedis, broker: Broker) -> None:
    """Fifty of them are one blocked connection, and none is left when they have gone."""
    async with gateway(redis.url) as api:

        async def reading() -> int:
            return len(await clients_by_last_command(broker.store.redis, "xread"))

        before = await reading()
        async with AsyncExitStack() as stack:
            watchers = [await stack.enter_async_context(aclosing(watch(api, "?after=latest"))) for _ in range(50)]
            for watcher in watchers:
                await anext(watcher)
            await wait_until(reading)
            gid = await finished(api, broker)
            streams = await gather(*(until(watcher, gid, "completed") for watcher in watchers))
            assert all(stream == streams[0] for stream in streams)
            assert await reading() - before == 1

        async def nobody() -> bool:
            return await reading() == before

        await wait_until(nobody)


async def test_it_goes_on_when_redis_comes_back(own_redis: EmbeddedRedis) -> None:
    """A pause for watchers; who comes while it is away is told to come back."""
    async with gateway(own_redis.url) as api, aclosing(watch(api)) as stream:
        await until(stream, (await api.create())["id"], "created")
        own_redis.kill()
        async with gateway(own_redis.url, TOKENCAST_DRAIN="0") as other:
            later = await other.http.get(PATH)
            assert (later.status_code, later.content[:7]) == (200, b"retry: ")
            assert "never retrieved" not in other.process.output
        await own_redis.restart()

        async def accepted() -> str | None:
            response = await api.http.post("/v1/generations", json=body() | {"model": "m"})
            return response.json()["id"] if response.status_code == 202 else None

        await until(stream, await wait_until(accepted), "created")
        assert "Traceback" not in api.process.output


async def test_a_deploy_ends_it_and_a_quiet_one_has_heartbeats(redis: EmbeddedRedis) -> None:
    async with gateway(redis.url, TOKENCAST_HEARTBEAT="0.15") as api:
        async with aclosing(watch(api, "?after=latest")) as stream:
            assert (await anext(stream)).id
            assert (await anext(stream)).comment
            api.process.send(signal.SIGTERM)
            rest = [frame async for frame in stream if not frame.comment]
        assert [frame.raw.startswith(b"retry: ") for frame in rest] == [True]
        assert await api.process.wait() in (0, -signal.SIGTERM)
        assert "Traceback" not in api.process.output
        assert "never retrieved" not in api.process.output


@linux
async def test_who_does_not_read_is_dropped(redis: EmbeddedRedis, broker: Broker) -> None:
    """Far behind the window of what is kept; the others have what they should."""
    limits = {"TOKENCAST_SEND_TIMEOUT": "0.5", "TOKENCAST_HEARTBEAT": "0.5"}
    metadata = {str(number): "x" * 500 for number in range(16)}
    async with gateway(redis.url, **limits) as api, peer(api, receive_buffer=4096) as stalled:
        stalled.get(PATH)
        await stalled.until(b"\r\n\r\n")
        async with aclosing(watch(api, "?after=latest")) as stream:
            await anext(stream)
            for _ in range(20):
                created = await gather(*(api.create(body() | {"model": "m", "metadata": metadata}) for _ in range(20)))
                missing = {one["id"] for one in created}
                while missing:
                    missing.discard((await anext(stream)).json["id"])
            await wait_until(lambda: stalled.port not in connections(api))
        async with aclosing(watch(api)) as again:
            kept = await until(again, created[-1]["id"], "created")
        assert sum(len(frame.raw) for frame in kept) < 3 << 20


async def test_nothing_is_left_out_while_hundreds_come(own_redis: EmbeddedRedis) -> None:
    """From all shards; a watcher who is cut off after every few events and comes
    back with its id has all of them too."""
    async with gateway(own_redis.url) as api:
        async with aclosing(watch(api, "?after=latest")) as stream:
            bookmark = (await anext(stream)).id or ""
            creating = asyncio.gather(*(api.create() for _ in range(300)))
            cut, last = set[str](), bookmark

            async def come_back() -> None:
                nonlocal last
                while len(cut) < 300:
                    async with aclosing(watch(api, **{"Last-Event-ID": last})) as again:
                        seen = 0
                        async for frame in again:
                            last = frame.id or last
                            seen += frame.json["id"] not in cut
                            cut.add(frame.json["id"])
                            if seen == 40 or len(cut) >= 300:
                                break

            coming = asyncio.create_task(come_back())
            expected = {one["id"] for one in await creating}
            shown: set[str] = set()
            async with asyncio.timeout(30):
                while not expected <= shown:
                    shown.add((await anext(stream)).json["id"])
                await coming
        assert cut == shown == expected
        assert {gid[14:16] for gid in expected} <= set(SHARDS)
