"""Several generations on one connection, read like a page that keeps a cursor for each."""

from __future__ import annotations

import asyncio
import hashlib
import signal
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pytest

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.acceptance.edge.peer import connections, frames, linux, peer, resident_memory, unchunked
from tests.support import DEADLINE, Frame, Gateway, Writer, gateway, tell_waiting, wait_until

WORDS = [f"word{i} " for i in range(40)]


async def start_generation(api: Gateway, broker: Broker, **headers: str) -> Writer:
    return await Writer(broker.store.redis, (await api.create(**headers))["id"]).claim()


async def completed_generation(api: Gateway, broker: Broker, words: list[str], **headers: str) -> Writer:
    writer = await start_generation(api, broker, **headers)
    await writer.append(*words)
    await writer.finish()
    return writer


def path_of(*named: str) -> str:
    return "/v1/events?" + "&".join(f"generation={one}" for one in named)


@dataclass
class Page:
    """The state of a page that reads the stream: the events of each generation, without repeated ones."""

    last_id: str | None = None
    seen: dict[str, list[tuple[str, str | None, Any]]] = field(default_factory=dict)

    def take(self, frame: Frame) -> None:
        self.last_id = frame.id or self.last_id
        if frame.data is None:
            return
        cursor, events = frame.json["cursor"], self.seen.setdefault(frame.json["generation"], [])
        if cursor == "0-0" and frame.event == "reset":
            events.clear()
        elif not events or numbers(events[-1][0]) < numbers(cursor):
            events.append((cursor, frame.event, frame.json["data"]))

    async def read(self, api: Gateway, path: str, most: int = 1 << 30) -> None:
        """One connection of an EventSource, which breaks after `most` frames."""
        headers = {"Last-Event-ID": self.last_id} if self.last_id else {}
        async with aclosing(api.stream("GET", path, headers=headers)) as stream:
            async for frame in stream:
                self.take(frame)
                most -= 1
                if not most:
                    return


def numbers(cursor: str) -> tuple[int, ...]:
    return tuple(map(int, cursor.split("-")))


async def alone(api: Gateway, gid: str) -> list[tuple[str, str | None, Any]]:
    """The events of the same generation on a stream of its own."""
    return [(frame.id or "", frame.event, frame.json) for frame in await api.events(gid)]


async def test_each_generation_arrives_as_on_its_own_stream(api: Gateway, broker: Broker) -> None:
    """Ten generations are written in turns. The stream ends with the last of them, and a reconnect gets 204."""
    writers = [await start_generation(api, broker) for _ in range(10)]
    page, path = Page(), path_of(*(writer.gid for writer in writers))
    reading = asyncio.create_task(page.read(api, path))
    for word in WORDS:
        for writer in writers:
            await writer.append(word)
    for writer in writers:
        await writer.finish()
    async with asyncio.timeout(30):
        await reading
    assert page.seen == {writer.gid: await alone(api, writer.gid) for writer in writers}
    response = await api.http.get(path, headers={"Last-Event-ID": page.last_id or ""})
    assert (response.status_code, response.content) == (204, b"")


async def test_frames_are_wrapped_and_terminal_events_have_an_id(api: Gateway, broker: Broker) -> None:
    writer = await completed_generation(api, broker, ["a"])
    shown = [frame async for frame in api.stream("GET", path_of(writer.gid))]
    assert [frame.event for frame in shown] == ["created", "started", "chunk", "completed"]
    assert shown[2].json == {
        "generation": writer.gid,
        "cursor": f"{writer.attempt}-1",
        "at": 0,
        "data": {"choices": [{"index": 0, "delta": {"content": "a"}}]},
    }
    assert [frame.id is not None for frame in shown] == [False, False, False, True]


async def test_an_event_has_the_time_of_the_log(api: Gateway, broker: Broker) -> None:
    """Also one that happened before the first attempt; and the record tells the lease and why an attempt was lost."""
    gid = (await api.create())["id"]
    meta = f"tc:{{{gid[14:16]}}}:m:{gid}"
    await broker.store.redis.execute("HINCRBY", meta, "ca", -60_000)
    await tell_waiting(broker.store.redis, gid, "paused")
    assert (await api.get(gid))["lease"] is None
    writer = await Writer(broker.store.redis, gid).claim()
    await writer.append("late", at=1234)
    lease = (await api.get(gid))["lease"]
    assert lease["expires_at"] - lease["renewed_at"] == pytest.approx(60)
    await broker.store.redis.execute("HSET", meta, "st", "queued", "own", "", "why", "worker_lost")
    lost = await api.get(gid)
    assert (lost["lease"], lost["reset_reason"], lost["attempt"]) == (None, "worker_lost", 1)
    await writer.claim()
    await writer.finish()
    frames = [frame async for frame in api.stream("GET", path_of(gid))]
    times = {frame.json["cursor"]: frame.json["at"] for frame in frames if frame.data}
    page = (await api.http.get(f"/v1/generations/{gid}/events", headers={"accept": "application/json"})).json()
    assert times == {event["id"]: event["at"] for event in page["data"]}
    waiting, late = page["data"][1], page["data"][3]
    assert waiting["event"] == "waiting"
    assert 60_000 <= waiting["at"] < 60_000 + 1000 * DEADLINE
    assert late["at"] == 1234


async def test_a_page_can_resume_after_any_frame(api: Gateway, broker: Broker) -> None:
    """By the ids of the stream for large steps, and by the cursors of the page for small ones."""
    gids = [(await completed_generation(api, broker, WORDS[:3])).gid for _ in range(3)]
    expected = {gid: await alone(api, gid) for gid in gids}
    for cut in range(1, 19):
        page = Page()
        await page.read(api, path_of(*gids), most=cut)
        await page.read(api, path_of(*gids))
        assert page.seen == expected
        assert page.last_id is not None


async def test_a_heartbeat_contains_the_cursors_of_all_generations(redis: EmbeddedRedis, broker: Broker) -> None:
    """Also on a busy stream. A reconnect with its id gets exactly the later events."""
    async with gateway(redis.url, TOKENCAST_HEARTBEAT="0.15") as api:
        busy, quiet = [await start_generation(api, broker) for _ in range(2)]
        await quiet.append("old ")
        path, page = path_of(busy.gid, quiet.gid), Page()
        async with aclosing(api.stream("GET", path)) as stream:
            async for frame in stream:
                page.take(frame)
                if frame.comment and len(page.seen) == 2 and len(page.seen[busy.gid]) > 20:
                    break
                await busy.append("word ")
        known = {gid: events[-1][0] for gid, events in page.seen.items()}
        for writer in (busy, quiet):
            await writer.append("new ")
            await writer.finish()
        resumed = [frame async for frame in api.stream("GET", path, headers={"Last-Event-ID": page.last_id or ""})]
        for frame in resumed:
            if frame.data:
                assert numbers(frame.json["cursor"]) > numbers(known[frame.json["generation"]])
                page.take(frame)
        assert page.seen == {gid: await alone(api, gid) for gid in known}


async def test_each_generation_begins_at_its_cursor(api: Gateway, broker: Broker) -> None:
    """For `latest` the stream begins with an id, so that events after a disconnect are not lost."""
    ended = await completed_generation(api, broker, WORDS[:3])
    running, unknown = [await start_generation(api, broker) for _ in range(2)]
    await running.append("old ")
    path = path_of(f"{ended.gid}@{ended.attempt}-2", f"{running.gid}@latest", f"{unknown.gid}@77-3", ended.gid)
    async with aclosing(api.stream("GET", path)) as stream:
        first = await anext(stream)
        assert (first.event, first.json["generation"], first.json["cursor"]) == ("reset", unknown.gid, "0-0")
        assert first.id is not None
        shown = [await anext(stream) for _ in range(4)]
    by_generation = [(frame.json["generation"], frame.event) for frame in shown]
    assert sorted(by_generation) == sorted(
        [(ended.gid, "chunk"), (ended.gid, "completed"), (unknown.gid, "created"), (unknown.gid, "started")]
    )
    await running.append("meanwhile ")
    async with aclosing(api.stream("GET", path, headers={"Last-Event-ID": first.id})) as stream:
        found = ""
        while "meanwhile" not in found:
            frame = await anext(stream)
            if frame.json["generation"] == running.gid:
                found += frame.json["data"]["choices"][0]["delta"]["content"]
    assert found == "meanwhile "


async def test_a_stream_from_latest_begins_with_an_id(api: Gateway, broker: Broker) -> None:
    """A disconnect before the first event loses nothing."""
    writer = await start_generation(api, broker)
    await writer.append("old ")
    path = path_of(f"{writer.gid}@latest")
    async with aclosing(api.stream("GET", path)) as stream:
        first = await anext(stream)
        assert (first.event, first.data, first.comment) == (None, None, False)
    await writer.append("meanwhile")
    await writer.finish()
    shown = [frame async for frame in api.stream("GET", path, headers={"Last-Event-ID": first.id or ""})]
    assert [frame.event for frame in shown] == ["chunk", "completed"]
    assert (await api.http.get(path)).status_code == 204


async def test_no_generation_waits_for_the_end_of_another(api: Gateway, broker: Broker) -> None:
    """The generations take turns when the subscriber reads more, even if the first one has much text."""
    gids = [(await completed_generation(api, broker, ["x" * 4000] * 1000)).gid for _ in range(3)]
    ends: list[str] = []
    begun: set[str] = set()
    async for frame in api.stream("GET", path_of(*gids)):
        if frame.event == "chunk":
            begun.add(frame.json["generation"])
        elif frame.event == "completed":
            assert begun == set(gids)
            ends.append(frame.json["generation"])
    assert sorted(ends) == sorted(gids)


async def test_an_id_of_another_stream_starts_from_the_beginning(api: Gateway, broker: Broker) -> None:
    gids = [(await completed_generation(api, broker, WORDS[:2])).gid for _ in range(2)]
    page = Page()
    await page.read(api, path_of(*gids))
    for path, last_id in ((path_of(*gids), "nonsense"), (path_of(*gids), "1-1"), (path_of(*gids[::-1]), page.last_id)):
        shown = [frame async for frame in api.stream("GET", path, headers={"Last-Event-ID": last_id or ""})]
        assert [frame.event for frame in shown[:2]] == ["reset", "reset"]
        again = Page()
        for frame in shown:
            again.take(frame)
        assert again.seen == page.seen


async def test_missing_generations_are_announced_and_the_others_continue(api: Gateway, broker: Broker) -> None:
    here, dropped = [await start_generation(api, broker) for _ in range(2)]
    deleted = (await completed_generation(api, broker, ["x"])).gid
    await api.http.delete(f"/v1/generations/{deleted}")
    unknown = "gen_" + "0" * 10 + "by" + "0" * 22
    path, page = path_of(unknown, here.gid, deleted, "nonsense", dropped.gid), Page()
    reading = asyncio.create_task(page.read(api, path))
    await wait_until(lambda: len(page.seen) == 5)
    for gid in (unknown, deleted, "nonsense"):
        assert page.seen[gid] == [("0-0", "gone", {})]
    await api.http.delete(f"/v1/generations/{dropped.gid}")
    await wait_until(lambda: page.seen[dropped.gid][-1][1] == "gone")
    await here.append("still here")
    await here.finish()
    async with asyncio.timeout(30):
        await reading
    assert page.seen[here.gid] == await alone(api, here.gid)
    response = await api.http.get(path, headers={"Last-Event-ID": page.last_id or ""})
    assert response.status_code == 204
    assert (await api.http.get(path_of(unknown, "nonsense"))).status_code == 404
    assert (await api.http.get(path_of(deleted))).json()["error"]["code"] == "generation_gone"


@pytest.mark.parametrize("named", [[], [f"g{n}" for n in range(101)], ["gen_x@1"], ["gen_x@latest", "gen_y@-"]])
async def test_invalid_lists_of_generations_are_refused(api: Gateway, named: list[str]) -> None:
    assert (await api.http.get(path_of(*named))).status_code == 400


async def test_an_invalid_id_cannot_forge_an_event(api: Gateway, broker: Broker) -> None:
    """An attacker who makes a page open a URL cannot write the events that the page receives."""
    gid, forged = (
        (await completed_generation(api, broker, ["x"])).gid,
        'a"}\n\nevent: chunk\r\ndata: {"generation":"b"}\n\n',
    )
    shown = [frame async for frame in api.stream("GET", path_of(gid, quote(forged)))]
    assert [frame.event for frame in shown] == ["gone", "created", "started", "chunk", "completed"]
    assert shown[0].json == {"generation": forged, "cursor": "0-0", "data": {}}


async def test_a_hundred_generations_on_one_connection(api: Gateway, broker: Broker) -> None:
    """Also with HEAD, which does not look the generations up."""
    writers = [await completed_generation(api, broker, WORDS[:number]) for number in range(0, 40, 4) for _ in range(10)]
    page, path = Page(), path_of(*(writer.gid for writer in writers))
    assert (await api.http.head(path)).headers["content-type"].startswith("text/event-stream")
    await page.read(api, path)
    for writer in writers:
        assert [event for _, event, _ in page.seen[writer.gid]][-1] == "completed"
        assert len(page.seen[writer.gid]) == writer.n + 3
    assert (await api.http.get(path, headers={"Last-Event-ID": page.last_id or ""})).status_code == 204


async def test_access_is_checked_for_each_generation(redis: EmbeddedRedis, broker: Broker) -> None:
    """A generation of another tenant looks unknown. A token opens only its own generation, and without either the
    response is 401."""
    tenants = ",".join(f"{name}:{hashlib.sha256(f'key-{name}'.encode()).hexdigest()}" for name in ("anna", "ben"))
    anna, ben = ({"authorization": f"Bearer key-{name}"} for name in ("anna", "ben"))
    async with gateway(redis.url, TOKENCAST_API_KEYS=tenants) as api:
        hers = await completed_generation(api, broker, ["hers"], **anna)
        his = await completed_generation(api, broker, ["his"], **ben)
        path = path_of(hers.gid, his.gid)
        made = (await api.http.post(f"/v1/generations/{hers.gid}/token", headers=anna)).json()
        for query, headers in (("", anna), (f"&token={made['token']}", {})):
            page = Page()
            async for frame in api.stream("GET", path + query, headers=headers):
                page.take(frame)
            assert page.seen[his.gid] == [("0-0", "gone", {})]
            assert [event for _, event, _ in page.seen[hers.gid]] == ["created", "started", "chunk", "completed"]
        assert (await api.http.get(path_of(hers.gid), headers=ben)).status_code == 404
        assert (await api.http.get(path)).status_code == 401
        assert (await api.http.get(path + "&token=x.y.z")).status_code == 401
        short = {"ttl_seconds": 1}
        running = await start_generation(api, broker, **anna)
        made = (await api.http.post(f"/v1/generations/{running.gid}/token", json=short, headers=anna)).json()
        ending = [frame async for frame in api.stream("GET", f"{path_of(running.gid)}&token={made['token']}")]
        assert b"retry: " in ending[-1].raw


async def test_a_drain_ends_the_stream_with_all_cursors(redis: EmbeddedRedis, broker: Broker) -> None:
    """Another gateway continues after the last event."""
    async with gateway(redis.url) as old, gateway(redis.url) as new:
        writers = [await start_generation(old, broker) for _ in range(3)]
        page, path = Page(), path_of(*(writer.gid for writer in writers))
        for writer in writers:
            await writer.append("one ")
        reading = asyncio.create_task(page.read(old, path))
        await wait_until(lambda: sum(map(len, page.seen.values())) == 9)
        old.process.send(signal.SIGTERM)
        async with asyncio.timeout(30):
            await reading
        assert await old.process.wait() in (0, -signal.SIGTERM)
        before = {gid: len(events) for gid, events in page.seen.items()}
        for writer in writers:
            await writer.append("two ")
            await writer.finish()
        shown = [frame async for frame in new.stream("GET", path, headers={"Last-Event-ID": page.last_id or ""})]
        assert len(shown) == 6
        for frame in shown:
            page.take(frame)
        assert before == dict.fromkeys(before, 3)
        assert page.seen == {writer.gid: await alone(new, writer.gid) for writer in writers}
        assert "Traceback" not in old.process.output


@linux
async def test_a_subscriber_of_several_generations_that_does_not_read_is_dropped(
    redis: EmbeddedRedis, broker: Broker
) -> None:
    """Four generations of ten megabytes each: the memory for a subscriber that does not read them is constant instead
    of forty megabytes, and it is dropped at the deadline. One that reads gets all events of all of them."""
    limits = {"TOKENCAST_SEND_TIMEOUT": "1", "TOKENCAST_HEARTBEAT": "1", "TOKENCAST_CACHE_BYTES": str(1 << 20)}
    async with gateway(redis.url, **limits) as api:
        writers = [await completed_generation(api, broker, ["x" * 10_000] * 1000) for _ in range(4)]
        path = path_of(*(writer.gid for writer in writers))
        before = most = resident_memory(api)
        async with peer(api, receive_buffer=4096) as stalled, peer(api) as reader:
            for one in (reader, stalled):
                one.get(path, headers="Connection: close\r\n")
            await reader.until(b"\r\n\r\n")
            reading = asyncio.create_task(reader.rest())

            def dropped() -> bool:
                nonlocal most
                most = max(most, resident_memory(api))
                return stalled.port not in connections(api)

            await wait_until(dropped)
            shown = [frame for frame in frames(unchunked(await reading)) if frame.data]
        print(f"resident memory: {before >> 20} MiB before, {most >> 20} at most")
        assert most - before < 30 << 20
        cursors: dict[str, list[str]] = {}
        for frame in shown:
            cursors.setdefault(frame.json["generation"], []).append(frame.json["cursor"])
        for writer in writers:
            assert cursors[writer.gid] == ["0-1", *(f"{writer.attempt}-{seq}" for seq in range(1002))]
