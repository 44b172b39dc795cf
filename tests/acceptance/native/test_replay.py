"""A generation as it happened, faster or slower: by the times in its log, whatever the clock says now."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import aclosing

import pytest

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.acceptance.edge.peer import connections, frames, linux, peer, unchunked
from tests.support import Gateway, Writer, gateway, texts, wait_until

HOUR = 3_600_000  # ms


async def claimed(api: Gateway, broker: Broker) -> Writer:
    return await Writer(broker.store.redis, (await api.create())["id"]).claim()


async def recorded(api: Gateway, broker: Broker, *times: int) -> Writer:
    """One chunk at each of these times, and not the end yet."""
    writer = await claimed(api, broker)
    for at in times:
        await writer.append(f"{at} ", at=at)
    return writer


async def test_a_finished_one_takes_its_time_divided_by_the_speed(api: Gateway, broker: Broker) -> None:
    """The very bytes of the log, and none before its time."""
    writer = await recorded(api, broker, *range(0, 2000, 10))
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


async def test_what_is_due_in_an_hour_is_waited_for_and_the_others_do_not_wait(
    redis: EmbeddedRedis, broker: Broker
) -> None:
    async with gateway(redis.url, TOKENCAST_HEARTBEAT="0.15") as api:
        writer = await recorded(api, broker, 0, 20, HOUR)
        await writer.finish()
        async with aclosing(api.follow(writer.gid, "?speed=10")) as stream:
            shown = [await anext(stream) for _ in range(7)]
            assert texts(await api.events(writer.gid)) == f"0 20 {HOUR} "
    assert [frame.event for frame in shown if not frame.comment] == ["created", "started", "chunk", "chunk"]
    assert shown[-1].comment


async def test_a_running_one_is_caught_up_with_and_followed(api: Gateway, broker: Broker) -> None:
    """From then on it is live: what is written now comes now. What comes in the moment before that is still paced:
    hence the speed, at which an hour is less than four seconds."""
    writer = await recorded(api, broker, 0, 500)
    async with aclosing(api.follow(writer.gid, "?speed=1000")) as stream:
        shown = [await anext(stream) for _ in range(4)]
        for at in (HOUR, 2 * HOUR):
            await writer.append(f"{at} ", at=at)
            shown.append(await anext(stream))
        await writer.finish()
        shown += [frame async for frame in stream]
    assert shown == await api.events(writer.gid)


async def test_slower_than_life_never_catches_up(redis: EmbeddedRedis, broker: Broker) -> None:
    """A tenth of the speed: what came after ten seconds comes after a hundred, also while it is written."""
    async with gateway(redis.url, TOKENCAST_HEARTBEAT="0.15") as api:
        writer = await claimed(api, broker)
        async with aclosing(api.follow(writer.gid, "?speed=0.1")) as stream:
            shown = [await anext(stream) for _ in range(2)]
            await writer.append("a ", at=1)
            await writer.append("b ", at=HOUR)
            await writer.finish()
            while texts(shown) != "a ":
                shown.append(await anext(stream))
            assert (await anext(stream)).comment
            assert (await anext(stream)).comment


async def test_time_counts_from_where_the_reader_begins(api: Gateway, broker: Broker) -> None:
    """Not from an hour before, which it does not want to see again."""
    writer = await recorded(api, broker, 0, HOUR, HOUR + 30)
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
    writer = await recorded(api, broker, 600)
    await broker.store.redis.execute("HSET", f"tc:{{{writer.gid[14:16]}}}:m:{writer.gid}", "st", "queued")
    second = await Writer(broker.store.redis, writer.gid).claim()
    await second.append("again ", at=300)
    await api.http.post(f"/v1/generations/{writer.gid}/cancel")
    began = time.monotonic()
    shown = await api.events(writer.gid, "?speed=2")
    assert time.monotonic() - began >= 0.45
    assert [frame.event for frame in shown] == ["created", "started", "chunk", "reset", "chunk", "cancelled"]
    assert shown == await api.events(writer.gid)


@pytest.mark.parametrize("speed", ["", "0", "-1", "fast", "nan", "inf", "1e3", "0.001", "1001", "1,5", "٣", "+2"])
async def test_a_speed_that_is_none_is_refused(api: Gateway, broker: Broker, speed: str) -> None:
    gid = (await api.create())["id"]
    response = await api.http.get(f"/v1/generations/{gid}/events", params={"speed": speed})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("speed", "invalid_value")


async def test_a_deploy_ends_it_as_it_ends_every_stream(redis: EmbeddedRedis, broker: Broker) -> None:
    """And it goes on behind its last event elsewhere."""
    async with gateway(redis.url) as api:
        writer = await recorded(api, broker, 0, HOUR)
        await writer.finish()
        async with aclosing(api.follow(writer.gid, "?speed=1")) as stream:
            shown = [await anext(stream) for _ in range(3)]
            api.process.send(signal.SIGTERM)
            (farewell,) = [frame async for frame in stream]
        assert await api.process.wait() in (0, -signal.SIGTERM)
    assert texts(shown) == "0 "
    assert farewell.raw.startswith(b"retry: ")


@linux
async def test_who_does_not_read_is_dropped_and_who_leaves_is_let_go(redis: EmbeddedRedis, broker: Broker) -> None:
    """In the middle of a wait, or with four megabytes before it that it does not take, long before a heartbeat would
    show it; who takes them gets them all."""
    async with gateway(redis.url, TOKENCAST_SEND_TIMEOUT="0.5", TOKENCAST_HEARTBEAT="40") as api:
        writer = await claimed(api, broker)
        for at in range(500):
            await writer.append("x" * 8000, at=at)
        path = f"/v1/generations/{writer.gid}/events?speed=100"
        async with peer(api, receive_buffer=4096) as stalled, peer(api) as taker, peer(api) as leaving:
            for one in (stalled, taker):
                one.get(path, headers="Connection: close\r\n")
            leaving.get(f"/v1/generations/{writer.gid}/events?speed=0.01")
            await leaving.until(b"event: started")
            leaving.writer.transport.abort()
            taking = asyncio.create_task(taker.rest())
            await wait_until(lambda: {stalled.port, leaving.port}.isdisjoint(connections(api)))
            await writer.finish()
            head, _, body = (await taking).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert texts([frame for frame in frames(unchunked(body)) if not frame.comment]) == "x" * 8000 * 500
        assert "Traceback" not in api.process.output


async def test_many_replays_and_a_live_reader_each_get_their_own(api: Gateway, broker: Broker) -> None:
    writer = await recorded(api, broker, *range(0, 1000, 5))
    readers = [asyncio.create_task(api.events(writer.gid, f"?speed={speed}")) for speed in (2, 5, 10, 50, 1000)]
    live = asyncio.create_task(api.events(writer.gid))
    await writer.append("end", at=1000)
    await writer.finish()
    expected = await live
    for reader in readers:
        assert await reader == expected
