"""Following one generation with native server-sent events, on a real gateway with a scripted worker."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack, aclosing

import pytest

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.support import DEADLINE, Frame, Gateway, Writer, clients_by_last_command, gateway, gather, texts, wait_until

WORDS = [f"word{i} " for i in range(300)]


async def start_generation(api: Gateway, broker: Broker) -> Writer:
    return await Writer(broker.store.redis, (await api.create())["id"]).claim()


async def completed_generation(api: Gateway, broker: Broker, words: list[str] = WORDS) -> Writer:
    writer = await start_generation(api, broker)
    await writer.append(*words)
    await writer.finish()
    return writer


async def test_subscribers_at_ten_moments_read_the_same_bytes(api: Gateway, broker: Broker) -> None:
    """From `created` to `completed`, without gap or duplicate, for subscribers before, during and after the
    generation."""
    generation = await api.create()
    readers = [asyncio.create_task(api.events(generation["id"]))]
    writer = await Writer(broker.store.redis, generation["id"]).claim()
    for moment in range(8):
        readers.append(asyncio.create_task(api.events(generation["id"])))
        for word in WORDS[moment * 30 : moment * 30 + 30]:
            await writer.append(word)
    await writer.append(*WORDS[240:])
    await writer.finish()
    readers.append(asyncio.create_task(api.events(generation["id"])))
    streams = await gather(*readers)
    first = streams[0]
    assert all(stream == first for stream in streams)
    assert [frame.event for frame in first] == ["created", "started", *["chunk"] * 300, "completed"]
    assert [frame.id for frame in first] == ["0-1", *(f"{writer.attempt}-{seq}" for seq in range(302))]
    assert texts(first) == "".join(WORDS)


@pytest.mark.parametrize("how", ["?after=", "Last-Event-ID"])
async def test_a_subscriber_resumes_after_any_cursor(api: Gateway, broker: Broker, how: str) -> None:
    gid = (await completed_generation(api, broker, WORDS[:20])).gid
    everything = await api.events(gid)
    for position, frame in enumerate(everything[:-1]):
        assert frame.id is not None
        rest = await (api.events(gid, f"?after={frame.id}") if how[0] == "?" else api.events(gid, **{how: frame.id}))
        assert rest == everything[position + 1 :]


async def test_the_header_overrides_the_query(api: Gateway, broker: Broker) -> None:
    """A reconnecting EventSource sends its first URL again, and its last id in a header."""
    writer = await completed_generation(api, broker, WORDS[:5])
    rest = await api.events(writer.gid, "?after=0-1", **{"Last-Event-ID": f"{writer.attempt}-4"})
    assert [frame.id for frame in rest] == [f"{writer.attempt}-5", f"{writer.attempt}-6"]


async def test_a_reconnect_after_the_end_is_204(api: Gateway, broker: Broker) -> None:
    writer = await completed_generation(api, broker, WORDS[:2])
    path = f"/v1/generations/{writer.gid}/events"
    response = await api.http.get(path, headers={"Last-Event-ID": f"{writer.attempt}-3"})
    assert (response.status_code, response.content) == (204, b"")
    assert (await api.http.get(f"{path}?after={writer.attempt}-3")).status_code == 204


@pytest.mark.parametrize("cursor", ["-1", "$", "latest", "1-", "9" * 17 + "-0", "٣-٤", "0-1\u2028"])
async def test_a_malformed_last_event_id_replays_everything_after_a_reset(
    api: Gateway, broker: Broker, cursor: str
) -> None:
    gid = (await completed_generation(api, broker, WORDS[:3])).gid
    everything = await api.events(gid)
    frames = await api.events(gid, **{"Last-Event-ID": cursor.encode()})
    assert (frames[0].id, frames[0].event) == ("0-0", "reset")
    assert frames[0].json == {"attempt": 1, "reason": "unknown_cursor"}
    assert frames[1:] == everything


async def test_a_malformed_after_is_refused(api: Gateway, broker: Broker) -> None:
    gid = (await completed_generation(api, broker, WORDS[:1])).gid
    response = await api.http.get(f"/v1/generations/{gid}/events?after=nonsense")
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_cursor"
    assert response.json()["error"]["param"] == "after"


@pytest.mark.parametrize("cursor", ["77-3", "9999999999999999-1", "0-0"])
async def test_an_unknown_cursor_replays_everything(api: Gateway, broker: Broker, cursor: str) -> None:
    """A valid cursor of another log: `reset` comes first, for the query and the header. `0-0` is the beginning."""
    gid = (await completed_generation(api, broker, WORDS[:3])).gid
    everything = await api.events(gid)
    for frames in (await api.events(gid, f"?after={cursor}"), await api.events(gid, **{"Last-Event-ID": cursor})):
        if cursor != "0-0":
            assert frames.pop(0).event == "reset"
        assert frames == everything


async def test_a_subscriber_from_latest_gets_a_bookmark_and_new_events(api: Gateway, broker: Broker) -> None:
    writer = await start_generation(api, broker)
    await writer.append("old ")
    async with aclosing(api.follow(writer.gid, "?after=latest")) as stream:
        bookmark = await anext(stream)
        assert bookmark == Frame(f"id: {writer.attempt}-1".encode(), f"{writer.attempt}-1", None, None)
        await writer.append("new ")
        assert texts([await anext(stream)]) == "new "


async def test_a_subscriber_from_latest_resumes_without_loss(api: Gateway, broker: Broker) -> None:
    """It has only the bookmark; later events follow after it. After the end the response is empty."""
    writer = await start_generation(api, broker)
    await writer.append("old ")
    async with aclosing(api.follow(writer.gid, "?after=latest")) as stream:
        bookmark = await anext(stream)
    await writer.append("meanwhile ")
    await writer.finish()
    frames = await api.events(writer.gid, "?after=latest", **{"Last-Event-ID": bookmark.id or ""})
    assert texts(frames) == "meanwhile "
    assert frames[-1].event == "completed"
    assert await api.events(writer.gid, "?after=latest") == []


async def test_a_second_attempt_is_announced_by_a_reset(api: Gateway, broker: Broker) -> None:
    """Subscribers discard the text; the ids of the log only grow."""
    writer = await start_generation(api, broker)
    await writer.append("lost ")
    reader = asyncio.create_task(api.events(writer.gid))
    await broker.store.redis.execute("HSET", f"tc:{{{writer.gid[14:16]}}}:m:{writer.gid}", "st", "queued", "own", "")
    second = await Writer(broker.store.redis, writer.gid).claim()
    await second.append("kept")
    await second.finish()
    (frames,) = await gather(reader)
    names = [frame.event for frame in frames]
    assert names == ["created", "started", "chunk", "reset", "chunk", "completed"]
    assert frames[3].json["attempt"] == 2
    assert frames[3].id == f"{second.attempt}-0"
    assert int(second.attempt) > int(writer.attempt)


async def test_cancel_ends_the_stream_without_a_worker(api: Gateway, broker: Broker) -> None:
    writer = await start_generation(api, broker)
    await writer.append("a ", "b ")
    reader = asyncio.create_task(api.events(writer.gid))
    cancelled = (await api.http.post(f"/v1/generations/{writer.gid}/cancel")).json()
    (frames,) = await gather(reader)
    assert (cancelled["status"], cancelled["text"]) == ("cancelled", "a b ")
    assert [frame.event for frame in frames][-2:] == ["chunk", "cancelled"]
    assert frames[-1].json["usage"] == {**cancelled["usage"]}
    assert cancelled["usage"]["completion_tokens"] == 2
    assert cancelled["usage"]["estimated"] is True
    assert await writer.append("late") == b"CLOSED"
    again = (await api.http.post(f"/v1/generations/{writer.gid}/cancel")).json()
    assert again == cancelled


async def test_delete_ends_streams_and_leaves_a_tombstone(api: Gateway, broker: Broker) -> None:
    writer = await start_generation(api, broker)
    await writer.append("a ")
    async with aclosing(api.follow(writer.gid)) as stream:
        for _ in range(3):
            await anext(stream)
        assert (await api.http.delete(f"/v1/generations/{writer.gid}")).status_code == 204
        assert [frame.event async for frame in stream] == ["gone"]
    for path in ("", "/events"):
        response = await api.http.get(f"/v1/generations/{writer.gid}{path}")
        assert (response.status_code, response.json()["error"]["code"]) == (410, "generation_gone")
    assert await writer.append("late") == b"GONE"
    listed = (await api.http.get("/v1/generations")).json()["data"]
    assert writer.gid not in [generation["id"] for generation in listed]


async def test_trimmed_history_is_announced_as_a_gap(api: Gateway, broker: Broker) -> None:
    writer = await completed_generation(api, broker, WORDS[:20])
    await broker.store.redis.execute("XTRIM", f"tc:{{{writer.gid[14:16]}}}:l:{writer.gid}", "MAXLEN", 5)
    frames = await api.events(writer.gid, f"?after={writer.attempt}-3")
    earliest = f"{writer.attempt}-17"
    assert frames[0].event == "gap"
    assert frames[0].json == {
        "requested": f"{writer.attempt}-3",
        "earliest": earliest,
        "latest": f"{writer.attempt}-21",
    }
    assert [frame.id for frame in frames[1:]] == [f"{writer.attempt}-{seq}" for seq in range(17, 22)]


async def test_events_are_available_as_json_pages(api: Gateway, broker: Broker) -> None:
    writer = await completed_generation(api, broker, WORDS[:3])
    path, headers = f"/v1/generations/{writer.gid}/events", {"accept": "application/json"}
    first = (await api.http.get(f"{path}?limit=4", headers=headers)).json()
    rest = (await api.http.get(f"{path}?after={first['data'][-1]['id']}", headers=headers)).json()
    assert (first["has_more"], rest["has_more"]) == (True, False)
    rows = first["data"] + rest["data"]
    assert [row["event"] for row in rows] == ["created", "started", "chunk", "chunk", "chunk", "completed"]
    assert [row["data"] for row in rows] == [frame.json for frame in await api.events(writer.gid)]
    assert rows[3]["at"] == 0


async def test_a_quiet_stream_has_heartbeats(redis: EmbeddedRedis, broker: Broker) -> None:
    async with gateway(redis.url, TOKENCAST_HEARTBEAT="0.15") as api:
        writer = await start_generation(api, broker)
        async with aclosing(api.follow(writer.gid)) as stream:
            frames = [await anext(stream) for _ in range(5)]
    assert [frame.event for frame in frames[:2]] == ["created", "started"]
    assert all(frame.comment for frame in frames[2:])


async def test_head_sends_headers_and_leaves_the_connection_usable(api: Gateway, broker: Broker) -> None:
    writer = await completed_generation(api, broker, WORDS[:1])
    path = f"/v1/generations/{writer.gid}/events"
    host, port = api.url.removeprefix("http://").split(":")
    reader, sender = await asyncio.open_connection(host, int(port))
    sender.write(
        f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    )
    async with asyncio.timeout(DEADLINE):
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"200 OK" in head
        assert b"text/event-stream" in head
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
    sender.close()
    assert (await api.http.head("/v1/generations/gen_" + "0" * 34 + "/events")).status_code == 404


async def test_streams_forbid_buffering_and_caching(api: Gateway, broker: Broker) -> None:
    writer = await completed_generation(api, broker, WORDS[:1])
    headers = (await api.http.get(f"/v1/generations/{writer.gid}/events")).headers
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["cache-control"] == "no-store, no-transform"
    assert headers["x-accel-buffering"] == "no"
    assert headers["x-request-id"].startswith("req_")


async def test_cors_is_an_allow_list(redis: EmbeddedRedis) -> None:
    async with gateway(redis.url, TOKENCAST_CORS_ORIGINS="https://app.example") as api:
        ask = {"origin": "https://app.example", "access-control-request-method": "POST"}
        ask["access-control-request-headers"] = "authorization, content-type, idempotency-key, last-event-id"
        preflight = await api.http.options("/v1/generations", headers=ask)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        answer = await api.http.get("/v1/generations", headers={"origin": "https://app.example"})
        exposed = answer.headers["access-control-expose-headers"]
        assert {"x-generation-id", "x-request-id", "location", "retry-after"} <= set(exposed.split(", "))
        foreign = await api.http.get("/v1/generations", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in foreign.headers


async def test_subscribers_share_one_connection_to_redis(redis: EmbeddedRedis, broker: Broker) -> None:
    """One connection serves fifty subscribers of a generation; the pool serves the other commands."""
    async with gateway(redis.url) as api:
        before = len(await clients_by_last_command(broker.store.redis, "xread"))
        writer = await start_generation(api, broker)
        await writer.append("a ")
        async with AsyncExitStack() as stack:
            readers = [await stack.enter_async_context(aclosing(api.follow(writer.gid))) for _ in range(50)]
            for reader in readers:
                assert [(await anext(reader)).event for _ in range(3)] == ["created", "started", "chunk"]
            assert len(await clients_by_last_command(broker.store.redis, "xread")) - before == 1
            await writer.finish()
            for reader in readers:
                assert [frame.event async for frame in reader] == ["completed"]


async def test_more_generations_than_one_reader_can_follow(api: Gateway, broker: Broker) -> None:
    """A reader follows 32 logs. The 40 generations here end at different times, and each subscriber gets its text."""
    writers = [await start_generation(api, broker) for _ in range(40)]
    readers = [asyncio.create_task(api.events(writer.gid)) for writer in writers]
    for position, writer in enumerate(writers):
        await writer.append(*WORDS[:position])
        await writer.finish()
    for position, frames in enumerate(await gather(*readers)):
        assert texts(frames) == "".join(WORDS[:position])
        assert frames[-1].event == "completed"


async def test_a_slow_subscriber_gets_everything(api: Gateway, broker: Broker) -> None:
    """Twelve megabytes wait for a subscriber that does not read; another subscriber is not delayed."""
    writer = await start_generation(api, broker)
    big = ["x" * 8000 for _ in range(300)]
    host, port = api.url.removeprefix("http://").split(":")
    slow, sender = await asyncio.open_connection(host, int(port), limit=1024)
    sender.write(f"GET /v1/generations/{writer.gid}/events HTTP/1.0\r\n\r\n".encode())
    quick = asyncio.create_task(api.events(writer.gid))
    for _ in range(5):
        await writer.append(*big)
    await writer.finish()
    (frames,) = await gather(quick)
    assert len(texts(frames)) == 12_000_000
    async with asyncio.timeout(DEADLINE):
        received = b"".join([data async for data in _all_of(slow)])
    sender.close()
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower()  # HTTP/1.0: the body ends with the connection
    assert body == b"".join(frame.raw + b"\n\n" for frame in frames)


async def _all_of(reader: asyncio.StreamReader):
    while data := await reader.read(65536):
        yield data


async def test_a_stopping_gateway_ends_streams_with_a_reconnection_time(redis: EmbeddedRedis, broker: Broker) -> None:
    async with gateway(redis.url, TOKENCAST_DRAIN="0.3") as api:
        writer = await start_generation(api, broker)
        await writer.append("a ")
        readers = [asyncio.create_task(api.events(writer.gid)) for _ in range(10)]
        await wait_until(lambda: clients_by_last_command(broker.store.redis, "xread"))
        # All ten have all events, so only the drain can end them.
        async with aclosing(api.follow(writer.gid)) as stream:
            for _ in range(3):
                await anext(stream)
            api.process.send(signal.SIGTERM)
            streams = await gather(*readers)
        assert await api.process.wait() in (0, -signal.SIGTERM)
    for frames in streams:
        assert [frame.event for frame in frames[:-1]] in ([], ["created", "started", "chunk"])
        assert frames[-1].raw.startswith(b"retry: ")
    async with gateway(redis.url) as other:
        rest = asyncio.create_task(other.events(writer.gid, **{"Last-Event-ID": f"{writer.attempt}-1"}))
        await writer.append("b")
        await writer.finish()
        assert texts((await gather(rest))[0]) == "b"
