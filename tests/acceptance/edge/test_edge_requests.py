"""Requests that are too long, too slow or never come: each is bounded in bytes and in seconds, and is told so where
there is anybody to tell."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Iterable
from contextlib import suppress

import pytest

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.acceptance.edge.peer import Answer, Peer, connections, listed, new_one, peer, resident
from tests.support import Gateway, Writer, gateway, gather, request_body, wait_until

MIB = 1 << 20
POST = "POST /v1/generations HTTP/1.1\r\nHost: localhost\r\n"
BODY = json.dumps(request_body()).encode()


@pytest.fixture(scope="module")
async def hasty(redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    """A gateway that waits half a second for a request."""
    async with gateway(redis.url, TOKENCAST_HEADER_TIMEOUT="0.5", TOKENCAST_HEARTBEAT="0.3") as started:
        yield started


def refused(answer: Answer, status: int, code: str) -> None:
    assert answer.status == status
    assert json.loads(answer.body)["error"]["code"] == code
    assert answer.headers["connection"] == "close"
    assert answer.headers["x-request-id"].startswith("req_")


async def pour(client: Peer, pieces: Iterable[bytes]) -> int:
    """Sends until the gateway wants no more; how many bytes that were."""
    sent = 0
    with suppress(ConnectionError):
        for piece in pieces:
            client.send(piece)
            await client.writer.drain()
            sent += len(piece)
    return sent


async def drip(client: Peer, data: bytes) -> None:
    """A byte at a time, ten in a second, for as long as it lasts."""
    with suppress(ConnectionError):
        for byte in data:
            client.send(bytes([byte]))
            await client.writer.drain()
            await asyncio.sleep(0.1)


# --- offers of another protocol -----------------------------------------------------------------------------------

H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"


def with_length(body: bytes, headers: str = "") -> bytes:
    return f"{POST}Content-Type: application/json\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def answers(client: Peer, count: int) -> list[tuple[int, bytes]]:
    """That many responses on one connection, all of a known length."""
    found: list[tuple[int, bytes]] = []
    for _ in range(count):
        head = await gather(client.reader.readuntil(b"\r\n\r\n"))
        length = re.search(rb"content-length: (\d+)", head[0].lower())
        assert length is not None
        (body,) = await gather(client.reader.readexactly(int(length[1])))
        found.append((int(head[0].split()[1]), body))
    return found


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "TLS/1.0, foo"])
@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
async def test_an_offer_of_another_protocol_is_ignored(api: Gateway, protocol: str, piece: int) -> None:
    """As `curl --http2` and Java's HttpClient make it: the body is read, and the connection goes on. RFC 9110 §7.8."""
    offered = H2C.replace("h2c", protocol)
    chunked = f"{POST}Content-Type: application/json\r\n{offered}Transfer-Encoding: chunked\r\n\r\n".encode()
    asked = b"".join(
        (
            with_length(BODY, offered),
            f"GET /healthz HTTP/1.1\r\nHost: localhost\r\n{offered}\r\n".encode() * 2,
            chunked + f"{len(BODY):x}\r\n".encode() + BODY + b"\r\n0\r\n\r\n",
            with_length(BODY),
        )
    )
    async with peer(api) as client:
        for start in range(0, len(asked), piece):
            client.send(asked[start : start + piece])
            await client.writer.drain()
            if piece < 100:
                await asyncio.sleep(0)
        found = await answers(client, 5)
    assert [status for status, _ in found] == [202, 200, 200, 202, 202]
    assert "uvicorn" not in api.process.output


async def test_many_offers_at_once_are_ignored(api: Gateway) -> None:
    async with peer(api) as client:
        client.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n" * 1000)
        assert {status for status, _ in await answers(client, 1000)} == {200}


async def test_an_offer_lifts_no_limit(api: Gateway) -> None:
    async with peer(api) as client:
        client.send(f"{POST}{H2C}X: {'x' * 40_000}\r\n\r\n")
        refused(await client.answer(), 431, "headers_too_large")
    async with peer(api) as client:
        client.send("CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n")
        assert (await client.answer()).status in (400, 403, 404, 405)


# --- heads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "more"),
    [
        pytest.param(b"GET /", b"a" * 65536, id="target"),
        pytest.param(b"GET / HTTP/1.1\r\nX: ", b"a" * 65536, id="value"),
        pytest.param(b"GET / HTTP/1.1\r\n", b"a" * 65536, id="name"),
        pytest.param(b"GET / HTTP/1.1\r\n", b"X: a\r\n" * 8192, id="headers"),
        pytest.param(b"", b"\r\n" * 32768, id="nothing"),
        pytest.param(f"{POST}Transfer-Encoding: chunked\r\n\r\n0\r\n".encode(), b"X: a\r\n" * 8192, id="trailers"),
        pytest.param(f"{POST}Transfer-Encoding: chunked\r\n\r\n5;".encode(), b"x" * 65536, id="extension"),
    ],
)
async def test_a_head_without_end_is_refused(api: Gateway, start: bytes, more: bytes) -> None:
    """Twenty megabytes are on their way; the answer comes before they have arrived, and nobody keeps them."""
    before = resident(api)
    async with peer(api) as client:
        sending = asyncio.create_task(pour(client, [start, *[more] * 320]))
        refused(await client.answer(), 431, "headers_too_large")
        assert await sending < 20 * MIB
    assert resident(api) - before < 10 * MIB
    assert (await api.http.get("/healthz")).status_code == 200


@pytest.mark.parametrize("cut", [100_000, 1000])
@pytest.mark.parametrize(("length", "status"), [(32768, 200), (32769, 431)])
async def test_a_head_has_32_kib(api: Gateway, length: int, status: int, cut: int) -> None:
    """To the byte, target and header lines together, in how many packets they ever come."""
    target, lines = b"/healthz", b"Host: localhost\r\nConnection: close\r\n"
    lines += b"X: " + b"a" * (length - len(target) - len(lines) - 5) + b"\r\n"
    request = b"GET %b HTTP/1.1\r\n%b\r\n" % (target, lines)
    async with peer(api) as client:
        await pour(client, [request[at : at + cut] for at in range(0, len(request), cut)])
        assert (await client.answer()).status == status


async def test_requests_in_one_packet_have_their_own_heads(api: Gateway) -> None:
    """Five of 20 KiB each, and a body between them: none counts towards the next."""
    get = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: %b\r\n\r\n" % (b"a" * 20_000)
    post = f"{POST}Content-Length: {len(BODY) + 40_000}\r\n\r\n".encode() + BODY + b" " * 40_000
    last = get.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    async with peer(api) as client:
        client.send(get + get + post + get + last)
        assert (await client.rest()).count(b"HTTP/1.1 20") == 5


# --- time -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start",
    ["G", "GET /heal", "GET /healthz HTTP/1.1\r\nHost: x", "GET /healthz HTTP/1.1\r\nHost: localhost\r\n", "\r\n"],
)
async def test_half_a_head_is_given_up(hasty: Gateway, start: str) -> None:
    async with peer(hasty) as client:
        client.send(start)
        refused(await client.answer(), 408, "request_timeout")


async def test_a_dribbled_head_is_given_up(hasty: Gateway) -> None:
    """Each byte is no new reason to wait: this head would take half a minute."""
    async with peer(hasty) as client:
        dripping = asyncio.create_task(drip(client, b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 300))
        refused(await client.answer(), 408, "request_timeout")
        assert not dripping.done()
        dripping.cancel()


async def test_a_connection_that_says_nothing_is_closed(hasty: Gateway) -> None:
    async with peer(hasty) as client:
        assert await client.rest() == b""


async def test_half_a_second_request_is_given_up(hasty: Gateway) -> None:
    async with peer(hasty) as client:
        client.get("/healthz")
        await client.until(b'{"status":"ok"}')
        client.send("GET /heal")
        refused(await client.answer(), 408, "request_timeout")


@pytest.mark.parametrize("how", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
async def test_a_body_that_never_comes_is_given_up(hasty: Gateway, how: str) -> None:
    async with peer(hasty) as client:
        client.send(f"{POST}{how}\r\n\r\n")
        refused(await client.answer(), 408, "request_timeout")
    assert "Traceback" not in hasty.process.output


async def test_a_dribbled_body_is_given_up(hasty: Gateway) -> None:
    async with peer(hasty) as client:
        client.send(f"{POST}Content-Length: 1000\r\n\r\n")
        dripping = asyncio.create_task(drip(client, BODY + b" " * 300))
        refused(await client.answer(), 408, "request_timeout")
        assert not dripping.done()
        dripping.cancel()


async def test_a_slow_body_is_waited_for(hasty: Gateway) -> None:
    """What comes at a fair pace may take longer than a head: 60 KB over two seconds here."""
    async with peer(hasty) as client:
        client.send(f"{POST}Connection: close\r\nContent-Length: {len(BODY) + 60_000}\r\n\r\n")
        for _ in range(20):
            client.send(b" " * 3000)
            await client.writer.drain()
            await asyncio.sleep(0.1)
        client.send(BODY)
        assert (await client.answer()).status == 202


async def test_nobody_is_hurried_whose_request_is_in(hasty: Gateway, broker: Broker) -> None:
    """A quiet stream, and a completion that is waited for, outlive the time for a request many times; a line break
    behind a body, which old clients send, begins no request."""
    writer = await Writer(broker.store.redis, (await hasty.create())["id"]).claim()
    async with peer(hasty) as reader, peer(hasty) as waiter:
        reader.follow(writer.gid)
        waiter.send(f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(BODY)}\r\n\r\n")
        before = await listed(hasty)
        waiter.send(BODY)
        other = await new_one(hasty, before)
        waiter.send(b"\r\n")
        for _ in range(5):
            await reader.until(b": hb\n\n")
        for one in (writer, await Writer(broker.store.redis, other).claim()):
            await one.append("late")
            await one.finish()
        assert b"event: completed" in await reader.until(b"0\r\n\r\n")
        assert b'"content":"late"' in await waiter.until(b'"finish_reason":"stop"')


# --- bodies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["/v1/generations", "/v1/chat/completions"])
@pytest.mark.parametrize("how", ["Content-Length: 104857600", "Transfer-Encoding: chunked"])
async def test_a_hundred_megabytes_are_refused_unread(api: Gateway, route: str, how: str) -> None:
    """413 while they are still on their way; most of them are never taken, and none is kept."""
    before = resident(api)
    piece = b"x" * MIB
    if "chunked" in how:
        piece = b"%x\r\n%b\r\n" % (len(piece), piece)
    async with peer(api) as client:
        client.send(f"POST {route} HTTP/1.1\r\nHost: localhost\r\n{how}\r\n\r\n")
        sending = asyncio.create_task(pour(client, [piece] * 100))
        refused(await client.answer(), 413, "request_too_large")
        assert await sending < 50 * MIB
    assert resident(api) - before < 20 * MIB


@pytest.mark.parametrize("headers", ["", "Connection: close\r\n"])
async def test_an_answer_before_the_body_is_in_is_not_lost(api: Gateway, headers: str) -> None:
    """An answer that closes the connection must not overtake itself with a reset: who is still sending reads it."""
    async with peer(api) as client:
        # More than the kernel takes for both sides, however much that is.
        client.send(f"POST /v1/nothing HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {100 * MIB}\r\n\r\n")
        sending = asyncio.create_task(pour(client, [b"x" * 65536] * 1600))
        assert (await client.answer()).status == 404
        assert await sending < 100 * MIB


async def test_an_early_answer_ends_with_a_fin(api: Gateway) -> None:
    """And not with a reset, at which some systems throw away what had arrived: what is on its way is read first."""
    async with peer(api) as client:
        client.send(f"POST /v1/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {10 * MIB}\r\n\r\n")
        client.send(b"x" * 500_000)
        await client.until(b'"code":"request_too_large"}}')
        async with asyncio.timeout(30):
            assert await client.reader.read() == b""


async def test_who_leaves_in_the_middle_of_a_body_is_no_crash(api: Gateway) -> None:
    async with peer(api) as client:
        client.send(f"{POST}Content-Length: {len(BODY) + 1}\r\n\r\n".encode() + BODY)
        await client.writer.drain()
        client.finish()
        await client.rest()
    await api.process.says("POST /v1/generations → 499")
    assert "Traceback" not in api.process.output


# --- answers that nobody takes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", ["", "Connection: close\r\n"])
async def test_an_answer_that_nobody_takes_is_dropped(redis: EmbeddedRedis, broker: Broker, headers: str) -> None:
    """Not only streams can stall: eight megabytes of text would be held for as long as somebody does not read."""
    async with gateway(redis.url, TOKENCAST_SEND_TIMEOUT="0.5") as api:
        writer = await Writer(broker.store.redis, (await api.create())["id"]).claim()
        for _ in range(8):
            await writer.append("x" * MIB)
        await writer.finish()
        async with peer(api, receive_buffer=4096) as client:
            client.get(f"/v1/generations/{writer.gid}", headers=headers)
            assert await client.reader.readexactly(15) == b"HTTP/1.1 200 OK"
            assert client.port in connections(api)
            await wait_until(lambda: client.port not in connections(api))


async def test_who_asks_and_takes_nothing_is_dropped(redis: EmbeddedRedis) -> None:
    """Answers pile up behind one that is not taken; no more are made than fit."""
    async with gateway(redis.url, TOKENCAST_SEND_TIMEOUT="0.5") as api, peer(api, receive_buffer=4096) as client:
        asked = b"GET /static/app.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100
        sending = asyncio.create_task(pour(client, [asked] * 10_000))
        await client.until(b"\r\n")
        await wait_until(lambda: client.port not in connections(api))
        assert await sending < len(asked) * 10_000
