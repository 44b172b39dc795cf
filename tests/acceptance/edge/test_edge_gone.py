"""Subscribers that have disconnected or do not read: their socket and reservation are released immediately or at the
deadline. Subscribers of a stream without events keep theirs."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import AsyncGenerator

import pytest

from api.server.server import listen
from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from broker.settings.settings import Settings
from tests.acceptance.edge.peer import Peer, connections, frames, linux, listed, new_generation, peer, peers, unchunked
from tests.support import Gateway, Writer, gateway, request_body, texts, wait_until

pytestmark = linux

NATIVE, CHAT = "/v1/generations/{}/events", "/v1/chat/completions/{}?stream=true"


@pytest.fixture(scope="module")
async def short_send_timeout(redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    """A gateway that drops subscribers that read nothing for half a second."""
    async with gateway(redis.url, TOKENCAST_SEND_TIMEOUT="0.5", TOKENCAST_HEARTBEAT="0.6") as started:
        yield started


async def start_generation(api: Gateway, broker: Broker) -> Writer:
    return await Writer(broker.store.redis, (await api.create())["id"]).claim()


def disconnect(client: Peer, how: str) -> None:
    if how == "FIN":
        client.finish()
    else:
        client.reset()


async def wait_until_closed(api: Gateway, port: int) -> None:
    """Wait for it, for less time than the heartbeat interval of a quiet stream (15 s)."""
    async with asyncio.timeout(12):
        await wait_until(lambda: port not in connections(api))


@pytest.mark.parametrize("how", ["FIN", "RST"])
async def test_a_disconnect_from_a_quiet_stream_is_detected(redis: EmbeddedRedis, broker: Broker, how: str) -> None:
    """Nothing is written when they disconnect. A pipelined request after the stream does not hide it."""
    async with gateway(redis.url) as api:
        writer = await start_generation(api, broker)
        await writer.append("word")
        for path in (NATIVE, CHAT):
            for pipelined in ("", "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"):
                async with peer(api) as client:
                    client.send(f"GET {path.format(writer.gid)} HTTP/1.1\r\nHost: localhost\r\n\r\n{pipelined}")
                    await client.until(b'"word"')
                    port = client.port
                    assert port in connections(api)
                    disconnect(client, how)
                    await wait_until_closed(api, port)
        api.process.send(signal.SIGTERM)
        await api.process.says(r"stopping: 0 streams")
        await api.process.wait()
        assert "Traceback" not in api.process.output
        assert "ERROR" not in api.process.output


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_disconnect_while_waiting_for_a_completion_is_detected(
    redis: EmbeddedRedis, broker: Broker, how: str, stream: bool
) -> None:
    """Before the first token, or without streaming: the status line has not been sent. The generation continues."""
    async with gateway(redis.url) as api, peer(api) as client:
        body = json.dumps(request_body(stream=stream)).encode()
        before = await listed(api)
        client.send(f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n")
        client.send(body)
        gid = await new_generation(api, before)
        port = client.port
        disconnect(client, how)
        await wait_until_closed(api, port)
        await (await Writer(broker.store.redis, gid).claim()).finish()
        assert "Traceback" not in api.process.output


def test_the_kernel_closes_connections_of_unreachable_peers() -> None:
    """No FIN, no RST, no acknowledgement: the timeout is inherited from the listening socket. (With a cable pulled
    between two network namespaces the connection was closed after 30.5 s.)"""
    with listen(Settings(HOST="127.0.0.1", PORT=0)) as listening, socket.socket() as client:
        client.connect(listening.getsockname())
        with listening.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000


@pytest.mark.parametrize("path", [NATIVE, CHAT])
async def test_a_subscriber_that_never_reads_is_dropped_and_can_resume(
    short_send_timeout: Gateway, broker: Broker, path: str
) -> None:
    """The socket is closed at the deadline with unsent data. The received part is a prefix, and the rest follows after
    its last id. (HTTP/1.0, so that all bytes belong to the stream.)"""
    writer = await start_generation(short_send_timeout, broker)
    words = [f"{number} ".ljust(1000, "x") for number in range(3000)]
    async with peer(short_send_timeout, receive_buffer=4096) as client:
        client.get(path.format(writer.gid), version="1.0")
        await client.until(b"\r\n\r\n")
        for at in range(0, len(words), 100):
            await writer.append(*words[at : at + 100])
        await writer.finish()
        await wait_until(lambda: client.port not in connections(short_send_timeout))
        taken = await client.rest()
    assert len(taken) < 1_000_000
    received = frames(taken[: taken.rindex(b"\n\n") + 2])
    last = next(frame.id for frame in reversed(received) if frame.id)
    async with peer(short_send_timeout) as again:
        again.get(f"{path.format(writer.gid)}{'&' if '?' in path else '?'}after={last}", version="1.0")
        rest = frames((await again.answer()).body)
    assert texts(received) + texts(rest) == "".join(words)


async def test_a_dropped_stream_has_no_regular_end(short_send_timeout: Gateway, broker: Broker) -> None:
    """A broken connection, which every client recognises, and not the regular end of a chunked body."""
    writer = await start_generation(short_send_timeout, broker)
    async with peer(short_send_timeout, receive_buffer=4096) as client:
        client.follow(writer.gid)
        head = await client.until(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head
        for _ in range(10):
            await writer.append(*["x" * 1000] * 100)
        await wait_until(lambda: client.port not in connections(short_send_timeout))
        with pytest.raises(AssertionError, match="cut off"):
            unchunked(await client.rest())


async def test_a_half_closed_connection_that_does_not_read_is_dropped(
    short_send_timeout: Gateway, broker: Broker
) -> None:
    """A FIN asks the gateway to close, which waits until the peer has read the pending data, but not without limit. The
    amount depends on the kernel's buffers, so there are forty peers, each with 10 KB more than the last."""
    async with peers(short_send_timeout, 40, receive_buffer=4096) as clients:
        for number, client in enumerate(clients):
            writer = await start_generation(short_send_timeout, broker)
            client.follow(writer.gid)
            await client.until(b"event: started")
            await writer.append(*["x" * 1000] * 10 * number)
            client.finish()
        await wait_until(lambda: connections(short_send_timeout).isdisjoint(client.port for client in clients))
        assert "ERROR" not in short_send_timeout.process.output


@pytest.mark.parametrize("path", [NATIVE, CHAT])
async def test_subscribers_of_a_silent_upstream_get_heartbeats(
    short_send_timeout: Gateway, broker: Broker, path: str
) -> None:
    """Idle proxies keep a connection with heartbeats, and the gateway does not end a silent stream."""
    writer = await start_generation(short_send_timeout, broker)
    await writer.append("word")
    async with peer(short_send_timeout) as client:
        client.get(path.format(writer.gid))
        await client.until(b'"word"')
        for _ in range(4):
            assert b"data" not in (await client.until(b": hb\n"))[10:]
        await writer.append("late")
        await client.until(b'"late"')
        await writer.finish()
        await client.until(b"0\r\n\r\n")
