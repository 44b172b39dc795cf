"""Replays at a given speed: paced by the times in the log, independent of the current time."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import aclosing

import pytest

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.acceptance.edge.peer import connections, frames, linux, peer, unchunked
from tests.support import Gateway, Writer, gateway, tell_waiting, texts, wait_until

HOUR = 3_600_000  # ms


async def start_generation(api: Gateway, broker: Broker) -> Writer:
    return await Writer(broker.store.redis, (await api.create())["id"]).claim()


async def generation_with_times(api: Gateway, broker: Broker, *times: int) -> Writer:
    """A running generation with one chunk at each of these times."""
    writer = await start_generation(api, broker)
    for at in times:
        await writer.append(f"{at} ", at=at)
    return writer


async def test_a_replay_is_paced_by_the_speed(api: Gateway, broker: Broker) -> None:
    """The same bytes as in the log, and none of them early."""
    writer = await generation_with_times(api, broker, *range(0, 2000, 10))
    await writer.finish()
    everything = await api.events(writer.gid)
    for speed in (4, 1000):
        began, arrivals = time.monotonic(), []
        replayed = []
        async for frame in api.follow(writer.gid, f"?speed={speed}"):
            replayed.append(frame)
            arrivals.append(time.monotonic() - began)
        assert replayed == everything
        for frame, arrival in zip(replayed, arrivals, strict=True):
            if frame.event == "chunk":
                assert arrival >= int(texts([frame])) / 1000 / speed


async def test_a_replay_waits_for_late_events_without_delaying_others(redis: EmbeddedRedis, broker: Broker) -> None:
    async with gateway(redis.url, TOKENCAST_HEARTBEAT="0.15") as api:
        writer = await generation_with_times(api, broker, 0, 20, HOUR)
        await writer.finish()
        async with aclosing(api.follow(writer.gid, "?speed=10")) as stream:
            shown = [await anext(stream) for _ in range(7)]
            assert texts(await api.events(writer.gid)) == f"0 20 {HOUR} "
    assert [frame.event for frame in shown if not frame.comment] == ["created", "started", "chunk", "chunk"]
    assert shown[-1].comment


async def test_a_replay_of_a_running_generation_becomes_live(api: Gateway, broker: Broker) -> None:
    """Then the stream is live: new events are sent immediately. Events that arrive before that are still paced, hence
    the speed, at which an hour is less than four seconds."""
    writer = await generation_with_times(api, broker, 0, 500)
    async with aclosing(api.follow(writer.gid, "?speed=1000")) as stream:
        shown = [await anext(stream) for _ in range(4)]
        for at in (HOUR, 2 * HOUR):
            await writer.append(f"{at} ", at=at)
            shown.append(await anext(stream))
        await writer.finish()
        shown += [frame async for frame in stream]
    assert shown == await api.events(writer.gid)


async def test_a_slow_replay_never_becomes_live(redis: EmbeddedRedis, broker: Broker) -> None:
    """At a tenth of the speed, an event at ten seconds comes after a hundred, also for a running generation."""
    async with gateway(redis.url, TOKENCAST_HEARTBEAT="0.15") as api:
        writer = await start_generation(api, broker)
        async with aclosing(api.follow(writer.gid, "?speed=0.1")) as stream:
            shown = [await anext(stream) for _ in range(2)]
            await writer.append("a ", at=1)
            await writer.append("b ", at=HOUR)
            await writer.finish()
            while texts(shown) != "a ":
                shown.append(await anext(stream))
            assert (await anext(stream)).comment
            assert (await anext(stream)).comment


async def test_the_time_of_a_replay_begins_at_the_cursor(api: Gateway, broker: Broker) -> None:
    """Not from events of an hour before the cursor."""
    writer = await generation_with_times(api, broker, 0, HOUR, HOUR + 30)
    await writer.append("late", at=2 * HOUR)
    cursor = f"{writer.attempt}-2"
    for query, header in ((f"?speed=1&after={cursor}", {}), ("?speed=1", {"Last-Event-ID": cursor})):
        async with aclosing(api.follow(writer.gid, query, **header)) as stream:
            assert texts([await anext(stream)]) == f"{HOUR + 30} "
    async with aclosing(api.follow(writer.gid, "?speed=1", **{"Last-Event-ID": "77-3"})) as stream:
        assert [(await anext(stream)).event for _ in range(4)] == ["reset", "created", "started", "chunk"]
    await writer.finish()
    assert await api.events(writer.gid, "?speed=1&after=latest") == []


async def test_each_attempt_has_a_time_of_its_own(api: Gateway, broker: Broker) -> None:
    writer = await generation_with_times(api, broker, 600)
    await broker.store.redis.execute("HSET", f"tc:{{{writer.gid[14:16]}}}:m:{writer.gid}", "st", "queued", "own", "")
    second = await Writer(broker.store.redis, writer.gid).claim()
    await second.append("again ", at=300)
    await api.http.post(f"/v1/generations/{writer.gid}/cancel")
    began = time.monotonic()
    shown = await api.events(writer.gid, "?speed=2")
    assert time.monotonic() - began >= 0.45
    assert [frame.event for frame in shown] == ["created", "started", "chunk", "reset", "chunk", "cancelled"]
    assert shown == await api.events(writer.gid)


async def test_the_time_in_the_queue_is_skipped(api: Gateway, broker: Broker) -> None:
    """An hour, before the reason of its waiting changes."""
    gid = (await api.create())["id"]
    await broker.store.redis.execute("HINCRBY", f"tc:{{{gid[14:16]}}}:m:{gid}", "ca", -HOUR)
    await tell_waiting(broker.store.redis, gid, "paused")
    await (await Writer(broker.store.redis, gid).claim()).finish()
    shown = await api.events(gid, "?speed=1")
    assert [frame.event for frame in shown] == ["created", "waiting", "started", "completed"]


@pytest.mark.parametrize("speed", ["", "0", "-1", "fast", "nan", "inf", "1e3", "0.001", "1001", "1,5", "٣", "+2"])
async def test_an_invalid_speed_is_refused(api: Gateway, broker: Broker, speed: str) -> None:
    gid = (await api.create())["id"]
    response = await api.http.get(f"/v1/generations/{gid}/events", params={"speed": speed})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("speed", "invalid_value")


async def test_a_drain_ends_a_replay(redis: EmbeddedRedis, broker: Broker) -> None:
    """The replay can continue after its last event elsewhere."""
    async with gateway(redis.url) as api:
        writer = await generation_with_times(api, broker, 0, HOUR)
        await writer.finish()
        async with aclosing(api.follow(writer.gid, "?speed=1")) as stream:
            shown = [await anext(stream) for _ in range(3)]
            api.process.send(signal.SIGTERM)
            (farewell,) = [frame async for frame in stream]
        assert await api.process.wait() in (0, -signal.SIGTERM)
    assert texts(shown) == "0 "
    assert farewell.raw.startswith(b"retry: ")


@linux
async def test_a_replay_detects_stalled_and_disconnected_subscribers(redis: EmbeddedRedis, broker: Broker) -> None:
    """Before an event that is not due, or with four megabytes that it does not read, long before a heartbeat would
    detect it; another subscriber gets all of them."""
    async with gateway(redis.url, TOKENCAST_SEND_TIMEOUT="0.5", TOKENCAST_HEARTBEAT="40") as api:
        writer = await start_generation(api, broker)
        for at in range(500):
            await writer.append("x" * 8000, at=at)
        path = f"/v1/generations/{writer.gid}/events?speed=100"
        async with peer(api, receive_buffer=4096) as stalled, peer(api) as reader, peer(api) as leaving:
            for one in (stalled, reader):
                one.get(path, headers="Connection: close\r\n")
            leaving.get(f"/v1/generations/{writer.gid}/events?speed=0.01")
            await leaving.until(b"event: started")
            leaving.writer.transport.abort()
            reading = asyncio.create_task(reader.rest())
            await wait_until(lambda: {stalled.port, leaving.port}.isdisjoint(connections(api)))
            await writer.finish()
            head, _, body = (await reading).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert texts([frame for frame in frames(unchunked(body)) if not frame.comment]) == "x" * 8000 * 500
        assert "Traceback" not in api.process.output


async def test_replays_of_several_speeds_and_a_live_stream_get_the_same_events(api: Gateway, broker: Broker) -> None:
    writer = await generation_with_times(api, broker, *range(0, 1000, 5))
    readers = [asyncio.create_task(api.events(writer.gid, f"?speed={speed}")) for speed in (2, 5, 10, 50, 1000)]
    live = asyncio.create_task(api.events(writer.gid))
    await writer.append("end", at=1000)
    await writer.finish()
    expected = await live
    for reader in readers:
        assert await reader == expected
