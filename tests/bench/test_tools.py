"""The tools of the benchmark: the load client counts every event and reports missing ones."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest

from broker.dev.embedded_redis import EmbeddedRedis
from tests.bench.native import Fanout, Received, Subscribers
from tests.bench.producing import Producer
from tests.bench.tool import ToolFailed
from tests.support import Gateway


@pytest.fixture(autouse=True)
def _compiler() -> None:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")


pytestmark = pytest.mark.compiler


@pytest.mark.parametrize("how", [{"rate": 1000}, {"rate": 0, "together": 7}, {"replay": True, "together": 200}])
async def test_every_subscriber_receives_every_event(how: dict[str, Any]) -> None:
    now = "now" if how.get("replay") else "answered"
    async with (
        Fanout(20, 200, **how) as fanout,
        Subscribers(fanout.port, ["/a", "/b"], 20, events=200, ready_when=now, timeout=20) as subscribers,
    ):
        await subscribers.ready()
        await fanout.ready()
        fanout.go()
        received, sent = await subscribers.result(), await fanout.result()
    assert received.whole
    assert (received.connected, received.events) == (20, 4000)
    assert 0 < received.lat_us.p50 <= received.lat_us.p99 <= received.lat_us.max < 20_000_000
    assert sent.deliveries == 4000


@pytest.mark.parametrize("rate", [0, 200, 50_000], ids=["flood", "paced", "late"])
async def test_the_producer_appends_like_a_worker(redis: EmbeddedRedis, api: Gateway, rate: int) -> None:
    gids = [(await api.create())["id"] for _ in range(3)]
    paths = [f"/v1/generations/{gid}/events" for gid in gids]
    async with (
        Subscribers(urlsplit(api.url).port or 0, paths, 9, timeout=20) as subscribers,
        Producer("append", redis.port, gids, events=105, rate=rate) as producer,
    ):
        await subscribers.ready()
        await producer.ready()
        producer.go()
        produced, received = await producer.result(), await subscribers.result()
    assert produced.events == 3 * 105
    assert received.whole
    assert received.events == 9 * 105
    assert [(await api.get(gid))["status"] for gid in gids] == ["completed"] * 3


def event(seq: int) -> bytes:
    return b'id: 1-%d\r\nevent: chunk\r\ndata: {"id":"chatcmpl-S%07dT1000000000000000"}\r\n\r\n' % (seq, seq)


PROPER = [event(seq) for seq in range(5)]
FAULTY = [event(seq) for seq in (0, 1, 3, 3, 4)]


def chunked(events: list[bytes]) -> bytes:
    return b"".join(b"%X;x=y\r\n%b\r\n" % (len(part), part) for part in [*events, b": hb\n\n"]) + b"0\r\n\r\n"


def answer(header: bytes, body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Type: text/event-stream\r\n%b\r\n%b" % (status, header, body)


@asynccontextmanager
async def serving(*parts: bytes) -> AsyncGenerator[int, None]:
    """A server that responds to every request with these parts, each in its own segment, and closes. Yields its
    port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with suppress(ConnectionError):  # a client that is complete disconnects
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def received(*parts: bytes, events: int | None = None) -> Received:
    async with (
        serving(*parts) as port,
        Subscribers(port, ["/"], 3, events=events, ready_when="asked", timeout=20) as subscribers,
    ):
        return await subscribers.result()


FRAMINGS = {
    "chunked": answer(b"transfer-encoding: Chunked\r\n", chunked(PROPER)),
    "length": answer(b"Content-Length: %d\r\n" % len(b"".join(PROPER)), b"".join(PROPER)),
    "until close": answer(b"", b"".join(PROPER)),
}


@pytest.mark.parametrize("events", [None, 5])
@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("framing", FRAMINGS)
async def test_a_response_can_arrive_in_any_pieces(framing: str, size: int, events: int | None) -> None:
    whole = FRAMINGS[framing]
    figures = await received(*(whole[at : at + size] for at in range(0, len(whole), size)), events=events)
    assert figures.whole
    assert (figures.events, figures.complete) == (15, 3)


async def test_missing_and_duplicate_events_are_counted() -> None:
    figures = await received(answer(b"Transfer-Encoding: chunked\r\n", chunked(FAULTY)), events=5)
    assert (figures.gaps, figures.dups, figures.complete) == (3, 3, 3)
    assert not figures.whole


async def test_a_stream_that_ends_early_is_not_complete() -> None:
    figures = await received(answer(b"Transfer-Encoding: chunked\r\n", chunked(PROPER)), events=6)
    assert (figures.eof_early, figures.complete, figures.gaps) == (3, 0, 0)
    cut_off = answer(b"Transfer-Encoding: chunked\r\n", chunked(PROPER)[:-5])
    assert (await received(cut_off)).eof_early == 3


async def test_a_status_other_than_200_is_an_error() -> None:
    figures = await received(answer(b"", b"", status=b"503 Service Unavailable"))
    assert (figures.http_err, figures.connected, figures.complete) == (3, 0, 0)


async def test_a_failing_tool_reports_its_error() -> None:
    subscribers = Subscribers(1, ["/"], 1, headers={"x": "y" * 9000})
    async with subscribers:
        with pytest.raises(ToolFailed, match="too long"):
            await subscribers.ready()
