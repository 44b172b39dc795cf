"""Readers that have gone, or might as well have: their socket and their place are free at once, or at the deadline;
and those who are only quiet, because there is nothing to say, keep theirs."""

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
from tests.acceptance.edge.peer import Peer, connections, frames, linux, listed, new_one, peer, peers, unchunked
from tests.support import Gateway, Writer, gateway, request_body, texts, wait_until

pytestmark = linux

NATIVE, CHAT = "/v1/generations/{}/events", "/v1/chat/completions/{}?stream=true"


@pytest.fixture(scope="module")
async def brisk(redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    """A gateway that gives up readers who take nothing for half a second."""
    async with gateway(redis.url, TOKENCAST_SEND_TIMEOUT="0.5", TOKENCAST_HEARTBEAT="0.6") as started:
        yield started


async def claimed(api: Gateway, broker: Broker) -> Writer:
    return await Writer(broker.store.redis, (await api.create())["id"]).claim()


def leave(client: Peer, how: str) -> None:
    if how == "FIN":
        client.finish()
    else:
        client.reset()


async def freed(api: Gateway, port: int) -> None:
    """Before a quiet stream's next heartbeat, which would come after a quarter of a minute."""
    async with asyncio.timeout(12):
        await wait_until(lambda: port not in connections(api))


@pytest.mark.parametrize("how", ["FIN", "RST"])
async def test_who_leaves_a_quiet_stream_is_let_go(redis: EmbeddedRedis, broker: Broker, how: str) -> None:
    """Nothing is being written when they leave, nor will be. A request that waits behind the stream hides nobody."""
    async with gateway(redis.url) as api:
        writer = await claimed(api, broker)
        await writer.append("word")
        for path in (NATIVE, CHAT):
            for behind in ("", "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"):
                async with peer(api) as client:
                    client.send(f"GET {path.format(writer.gid)} HTTP/1.1\r\nHost: localhost\r\n\r\n{behind}")
                    await client.until(b'"word"')
                    port = client.port
                    assert port in connections(api)
                    leave(client, how)
                    await freed(api, port)
        api.process.send(signal.SIGTERM)
        await api.process.says(r"stopping: 0 streams")
        await api.process.wait()
        assert "Traceback" not in api.process.output
        assert "ERROR" not in api.process.output


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("stream", [True, False])
async def test_who_leaves_while_waiting_is_let_go(redis: EmbeddedRedis, broker: Broker, how: str, stream: bool) -> None:
    """For a first token, or for the whole: the status line is not even out. The generation goes on."""
    async with gateway(redis.url) as api, peer(api) as client:
        body = json.dumps(request_body(stream=stream)).encode()
        before = await listed(api)
        client.send(f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n")
        client.send(body)
        gid = await new_one(api, before)
        port = client.port
        leave(client, how)
        await freed(api, port)
        await (await Writer(broker.store.redis, gid).claim()).finish()
        assert "Traceback" not in api.process.output


def test_a_peer_whose_network_is_gone_is_the_kernel_s_to_notice() -> None:
    """No FIN, no RST, no acknowledgement: how long that is borne is inherited from the listening socket. (With a cable
    pulled between two network namespaces the connection was closed after 30.5 s.)"""
    with listen(Settings(HOST="127.0.0.1", PORT=0)) as listening, socket.socket() as client:
        client.connect(listening.getsockname())
        with listening.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000


@pytest.mark.parametrize("path", [NATIVE, CHAT])
async def test_who_never_reads_is_dropped_and_may_resume(brisk: Gateway, broker: Broker, path: str) -> None:
    """The socket is closed at the deadline whatever waits in it; what the reader had taken is a beginning, and the
    rest follows its last id. (HTTP/1.0, so that all bytes are the stream's.)"""
    writer = await claimed(brisk, broker)
    words = [f"{number} ".ljust(1000, "x") for number in range(3000)]
    async with peer(brisk, receive_buffer=4096) as client:
        client.get(path.format(writer.gid), version="1.0")
        await client.until(b"\r\n\r\n")
        for at in range(0, len(words), 100):
            await writer.append(*words[at : at + 100])
        await writer.finish()
        await wait_until(lambda: client.port not in connections(brisk))
        taken = await client.rest()
    assert len(taken) < 1_000_000
    begun = frames(taken[: taken.rindex(b"\n\n") + 2])
    last = next(frame.id for frame in reversed(begun) if frame.id)
    async with peer(brisk) as again:
        again.get(f"{path.format(writer.gid)}{'&' if '?' in path else '?'}after={last}", version="1.0")
        rest = frames((await again.answer()).body)
    assert texts(begun) + texts(rest) == "".join(words)


async def test_who_is_dropped_sees_no_end(brisk: Gateway, broker: Broker) -> None:
    """A cut, which every client takes for one, and not a chunked encoding's end."""
    writer = await claimed(brisk, broker)
    async with peer(brisk, receive_buffer=4096) as client:
        client.follow(writer.gid)
        head = await client.until(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head
        for _ in range(10):
            await writer.append(*["x" * 1000] * 100)
        await wait_until(lambda: client.port not in connections(brisk))
        with pytest.raises(AssertionError, match="cut off"):
            unchunked(await client.rest())


async def test_who_says_goodbye_and_takes_nothing_is_dropped(brisk: Gateway, broker: Broker) -> None:
    """A FIN asks us to close, which waits for the peer to take what is pending: not for ever. How much that is depends
    on what the kernel takes, so there are forty peers, each with 10 KB more to come."""
    async with peers(brisk, 40, receive_buffer=4096) as clients:
        for number, client in enumerate(clients):
            writer = await claimed(brisk, broker)
            client.follow(writer.gid)
            await client.until(b"event: started")
            await writer.append(*["x" * 1000] * 10 * number)
            client.finish()
        await wait_until(lambda: connections(brisk).isdisjoint(client.port for client in clients))
        assert "ERROR" not in brisk.process.output


@pytest.mark.parametrize("path", [NATIVE, CHAT])
async def test_a_silent_upstream_s_readers_have_heartbeats(brisk: Gateway, broker: Broker, path: str) -> None:
    """Idle proxies keep a connection on which something comes; and the silence is no reason for us to end it."""
    writer = await claimed(brisk, broker)
    await writer.append("word")
    async with peer(brisk) as client:
        client.get(path.format(writer.gid))
        await client.until(b'"word"')
        for _ in range(4):
            assert b"data" not in (await client.until(b": hb\n"))[10:]
        await writer.append("late")
        await client.until(b'"late"')
        await writer.finish()
        await client.until(b"0\r\n\r\n")
