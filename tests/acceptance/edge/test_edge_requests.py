"""Requests that are too long, too slow or incomplete: each is bounded in bytes and in seconds, and gets an error
response if the client can receive one."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Iterable
from contextlib import suppress

import pytest

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.acceptance.edge.peer import Answer, Peer, connections, listed, new_generation, peer, resident_memory
from tests.support import Gateway, Writer, gateway, gather, request_body, wait_until

MIB = 1 << 20
POST = "POST /v1/generations HTTP/1.1\r\nHost: localhost\r\n"
BODY = json.dumps(request_body()).encode()


@pytest.fixture(scope="module")
async def short_timeout(redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    """A gateway with a request timeout of half a second."""
    async with gateway(redis.url, TOKENCAST_HEADER_TIMEOUT="0.5", TOKENCAST_HEARTBEAT="0.3") as started:
        yield started


def assert_refused(answer: Answer, status: int, code: str) -> None:
    assert answer.status == status
    assert json.loads(answer.body)["error"]["code"] == code
    assert answer.headers["connection"] == "close"
    assert answer.headers["x-request-id"].startswith("req_")


async def pour(client: Peer, pieces: Iterable[bytes]) -> int:
    """Send until the gateway accepts no more; return the number of bytes."""
    sent = 0
    with suppress(ConnectionError):
        for piece in pieces:
            client.send(piece)
            await client.writer.drain()
            sent += len(piece)
    return sent


async def drip(client: Peer, data: bytes) -> None:
    """Send ten bytes per second until the connection is closed."""
    with suppress(ConnectionError):
        for byte in data:
            client.send(bytes([byte]))
            await client.writer.drain()
            await asyncio.sleep(0.1)


# --- protocol upgrades ------------------------------------------------------------------------------------------------

H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"


def with_length(body: bytes, headers: str = "") -> bytes:
    return f"{POST}Content-Type: application/json\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def read_responses(client: Peer, count: int) -> list[tuple[int, bytes]]:
    """Read this number of responses of a known length from one connection."""
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
async def test_an_upgrade_to_another_protocol_is_ignored(api: Gateway, protocol: str, piece: int) -> None:
    """As sent by `curl --http2` and Java's HttpClient: the body is read, and the connection continues. RFC 9110
    §7.8."""
    offered = H2C.replace("h2c", protocol)
    chunked = f"{POST}Content-Type: application/json\r\n{offered}Transfer-Encoding: chunked\r\n\r\n".encode()
    requests = b"".join(
        (
            with_length(BODY, offered),
            f"GET /healthz HTTP/1.1\r\nHost: localhost\r\n{offered}\r\n".encode() * 2,
            chunked + f"{len(BODY):x}\r\n".encode() + BODY + b"\r\n0\r\n\r\n",
            with_length(BODY),
        )
    )
    async with peer(api) as client:
        for start in range(0, len(requests), piece):
            client.send(requests[start : start + piece])
            await client.writer.drain()
            if piece < 100:
                await asyncio.sleep(0)
        found = await read_responses(client, 5)
    assert [status for status, _ in found] == [202, 200, 200, 202, 202]
    assert "uvicorn" not in api.process.output


async def test_many_upgrades_are_ignored(api: Gateway) -> None:
    async with peer(api) as client:
        client.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n" * 1000)
        assert {status for status, _ in await read_responses(client, 1000)} == {200}


async def test_an_upgrade_lifts_no_limit(api: Gateway) -> None:
    async with peer(api) as client:
        client.send(f"{POST}{H2C}X: {'x' * 40_000}\r\n\r\n")
        assert_refused(await client.answer(), 431, "headers_too_large")
    async with peer(api) as client:
        client.send("CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n")
        assert (await client.answer()).status in (400, 403, 404, 405)


# --- headers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "more"),
    [
        pytest.param(b"GET /", b"a" * 65536, id="target"),
        pytest.param(b"GET / HTTP/1.1\r\nX: ", b"a" * 65536, id="value"),
        pytest.param(b"GET / HTTP/1.1\r\n", b"a" * 65536, id="name"),
        pytest.param(b"GET / HTTP/1.1\r\n", b"X: a\r\n" * 8192, id="headers"),
        pytest.param(b"", b"\r\n" * 32768, id="line breaks"),
        pytest.param(f"{POST}Transfer-Encoding: chunked\r\n\r\n0\r\n".encode(), b"X: a\r\n" * 8192, id="trailers"),
        pytest.param(f"{POST}Transfer-Encoding: chunked\r\n\r\n5;".encode(), b"x" * 65536, id="extension"),
    ],
)
async def test_endless_headers_are_refused(api: Gateway, start: bytes, more: bytes) -> None:
    """Twenty megabytes are being sent; the response comes before they have arrived, and they are not kept."""
    before = resident_memory(api)
    async with peer(api) as client:
        sending = asyncio.create_task(pour(client, [start, *[more] * 320]))
        assert_refused(await client.answer(), 431, "headers_too_large")
        assert await sending < 20 * MIB
    assert resident_memory(api) - before < 10 * MIB
    assert (await api.http.get("/healthz")).status_code == 200


@pytest.mark.parametrize("cut", [100_000, 1000])
@pytest.mark.parametrize(("length", "status"), [(32768, 200), (32769, 431)])
async def test_headers_are_limited_to_32_kib(api: Gateway, length: int, status: int, cut: int) -> None:
    """To the byte, request target and header lines together, split into any number of packets."""
    target, lines = b"/healthz", b"Host: localhost\r\nConnection: close\r\n"
    lines += b"X: " + b"a" * (length - len(target) - len(lines) - 5) + b"\r\n"
    request = b"GET %b HTTP/1.1\r\n%b\r\n" % (target, lines)
    async with peer(api) as client:
        await pour(client, [request[at : at + cut] for at in range(0, len(request), cut)])
        assert (await client.answer()).status == status


async def test_pipelined_requests_have_header_limits_of_their_own(api: Gateway) -> None:
    """Five of 20 KiB each, with a body between them: none counts towards the next."""
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
async def test_incomplete_headers_time_out(short_timeout: Gateway, start: str) -> None:
    async with peer(short_timeout) as client:
        client.send(start)
        assert_refused(await client.answer(), 408, "request_timeout")


async def test_headers_sent_byte_by_byte_time_out(short_timeout: Gateway) -> None:
    """A byte does not restart the timeout: these headers would take half a minute."""
    async with peer(short_timeout) as client:
        dripping = asyncio.create_task(drip(client, b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 300))
        assert_refused(await client.answer(), 408, "request_timeout")
        assert not dripping.done()
        dripping.cancel()


async def test_a_connection_without_a_request_is_closed(short_timeout: Gateway) -> None:
    async with peer(short_timeout) as client:
        assert await client.rest() == b""


async def test_an_incomplete_second_request_times_out(short_timeout: Gateway) -> None:
    async with peer(short_timeout) as client:
        client.get("/healthz")
        await client.until(b'{"status":"ok"}')
        client.send("GET /heal")
        assert_refused(await client.answer(), 408, "request_timeout")


@pytest.mark.parametrize("how", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
async def test_a_missing_body_times_out(short_timeout: Gateway, how: str) -> None:
    async with peer(short_timeout) as client:
        client.send(f"{POST}{how}\r\n\r\n")
        assert_refused(await client.answer(), 408, "request_timeout")
    assert "Traceback" not in short_timeout.process.output


async def test_a_body_sent_byte_by_byte_times_out(short_timeout: Gateway) -> None:
    async with peer(short_timeout) as client:
        client.send(f"{POST}Content-Length: 1000\r\n\r\n")
        dripping = asyncio.create_task(drip(client, BODY + b" " * 300))
        assert_refused(await client.answer(), 408, "request_timeout")
        assert not dripping.done()
        dripping.cancel()


async def test_a_slow_body_is_accepted(short_timeout: Gateway) -> None:
    """A body at a fair pace may take longer than the header timeout: 60 KB over two seconds here."""
    async with peer(short_timeout) as client:
        client.send(f"{POST}Connection: close\r\nContent-Length: {len(BODY) + 60_000}\r\n\r\n")
        for _ in range(20):
            client.send(b" " * 3000)
            await client.writer.drain()
            await asyncio.sleep(0.1)
        client.send(BODY)
        assert (await client.answer()).status == 202


async def test_a_complete_request_has_no_request_timeout(short_timeout: Gateway, broker: Broker) -> None:
    """A quiet stream and a pending completion outlive the request timeout many times. A line break after a body, which
    old clients send, begins no request."""
    writer = await Writer(broker.store.redis, (await short_timeout.create())["id"]).claim()
    async with peer(short_timeout) as reader, peer(short_timeout) as waiter:
        reader.follow(writer.gid)
        waiter.send(f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(BODY)}\r\n\r\n")
        before = await listed(short_timeout)
        waiter.send(BODY)
        other = await new_generation(short_timeout, before)
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
async def test_a_body_of_a_hundred_megabytes_is_refused_unread(api: Gateway, route: str, how: str) -> None:
    """413 while they are being sent; most of them are never read, and none is kept."""
    before = resident_memory(api)
    piece = b"x" * MIB
    if "chunked" in how:
        piece = b"%x\r\n%b\r\n" % (len(piece), piece)
    async with peer(api) as client:
        client.send(f"POST {route} HTTP/1.1\r\nHost: localhost\r\n{how}\r\n\r\n")
        sending = asyncio.create_task(pour(client, [piece] * 100))
        assert_refused(await client.answer(), 413, "request_too_large")
        assert await sending < 50 * MIB
    assert resident_memory(api) - before < 20 * MIB


@pytest.mark.parametrize("headers", ["", "Connection: close\r\n"])
async def test_a_response_before_the_end_of_the_body_is_not_lost(api: Gateway, headers: str) -> None:
    """A response that closes the connection must not be lost in a reset: a client that is still sending reads it."""
    async with peer(api) as client:
        # More than the buffers of the kernel on both sides, whatever their size.
        client.send(f"POST /v1/nothing HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {100 * MIB}\r\n\r\n")
        sending = asyncio.create_task(pour(client, [b"x" * 65536] * 1600))
        assert (await client.answer()).status == 404
        assert await sending < 100 * MIB


async def test_an_early_response_ends_with_a_fin(api: Gateway) -> None:
    """Not with a RST, at which some systems discard received data: the remaining body is read first."""
    async with peer(api) as client:
        client.send(f"POST /v1/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {10 * MIB}\r\n\r\n")
        client.send(b"x" * 500_000)
        await client.until(b'"code":"request_too_large"}}')
        async with asyncio.timeout(30):
            assert await client.reader.read() == b""


async def test_a_disconnect_within_a_body_is_handled(api: Gateway) -> None:
    async with peer(api) as client:
        client.send(f"{POST}Content-Length: {len(BODY) + 1}\r\n\r\n".encode() + BODY)
        await client.writer.drain()
        client.finish()
        await client.rest()
    await api.process.says("POST /v1/generations → 499")
    assert "Traceback" not in api.process.output


# --- responses that are not read --------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", ["", "Connection: close\r\n"])
async def test_a_response_that_is_not_read_is_dropped(redis: EmbeddedRedis, broker: Broker, headers: str) -> None:
    """Not only streams can stall: eight megabytes of text would be held until the client reads."""
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


async def test_a_client_that_sends_requests_without_reading_is_dropped(redis: EmbeddedRedis) -> None:
    """Responses are queued after one that is not read; no more are produced than fit."""
    async with gateway(redis.url, TOKENCAST_SEND_TIMEOUT="0.5") as api, peer(api, receive_buffer=4096) as client:
        requests = b"GET /static/app.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100
        sending = asyncio.create_task(pour(client, [requests] * 10_000))
        await client.until(b"\r\n")
        await wait_until(lambda: client.port not in connections(api))
        assert await sending < len(requests) * 10_000
