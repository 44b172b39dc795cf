"""The cost of stalled readers for the others.

Two hundred readers of one stream, alternately alone and next to two hundred that read nothing and are not dropped. The
figure is the time from just before a chunk's append to its arrival at each reader. Gateway and Redis are real. The
worker is a script in this process, and so are the readers: their own time is part of both rows.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from urllib.parse import urlsplit

from broker import connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.redis.client import Redis
from tests.bench.report import Rows, report, row
from tests.support import Gateway, Writer, gateway, wait_until

READERS = 200
CHUNKS, PAUSE = 150, 0.02  # of one run: three seconds at 50 per second
FLOOD = 2000  # chunks of 1 KB sent first: far more than the kernel buffers for a stalled reader
STAMP = re.compile(rb'"sent_ns":(\d+)')


class Reader(asyncio.Protocol):
    """Records the age of each timestamped chunk at its arrival."""

    def __init__(self) -> None:
        self.lags: list[float] = []
        self.seen = 0
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        at = time.time_ns()
        complete, newline, self._rest = (self._rest + data).rpartition(b"\n")
        self.seen += complete.count(b"event: chunk")
        self.lags += [(at - int(stamp)) / 1e6 for stamp in STAMP.findall(complete + newline)]


async def open_socket(url: str, gid: str, receive_buffer: int | None = None) -> socket.socket:
    where = urlsplit(url)
    sock = socket.socket()
    sock.setblocking(False)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, (where.hostname, where.port))
    await loop.sock_sendall(sock, f"GET /v1/generations/{gid}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return sock


async def one_run(api: Gateway, redis: Redis, stalled: int) -> list[float]:
    """The delays of all readers in ms."""
    writer = await Writer(redis, (await api.create())["id"]).claim()
    loop = asyncio.get_running_loop()
    stalled_sockets = [await open_socket(api.url, writer.gid, 4096) for _ in range(stalled)]
    readers: list[Reader] = []
    for _ in range(READERS):
        sock = await open_socket(api.url, writer.gid)
        readers.append((await loop.create_connection(Reader, sock=sock))[1])
    for _ in range(FLOOD // 50):
        await writer.append(*["x" * 1000] * 50)
    await wait_until(lambda: all(reader.seen == FLOOD for reader in readers))
    for _ in range(CHUNKS):
        await asyncio.sleep(PAUSE)
        await writer.append_raw(json.dumps({"choices": [], "sent_ns": time.time_ns()}, separators=(",", ":")).encode())
    await writer.finish()
    await wait_until(lambda: all(reader.seen == FLOOD + CHUNKS for reader in readers))
    for reader in readers:
        reader.transport.abort()
    for sock in stalled_sockets:
        sock.close()
    return [lag for reader in readers for lag in reader.lags]


async def measure(runs: int) -> Rows:
    alone, with_stalled = f"{READERS} readers, ms", f"{READERS} readers next to {READERS} stalled, ms"
    lags: dict[str, list[float]] = {alone: [], with_stalled: []}
    async with (
        EmbeddedRedis() as redis,
        connect(redis.url) as broker,
        gateway(redis.url, TOKENCAST_SEND_TIMEOUT="600") as api,
    ):
        await one_run(api, broker.store.redis, 0)  # connections, imports, caches
        for _ in range(runs):
            for name, stalled in ((alone, 0), (with_stalled, READERS)):
                lags[name] += await one_run(api, broker.store.redis, stalled)
    table = {name: row(values) for name, values in lags.items()}
    ratios = {figure: round(table[with_stalled][figure] / table[alone][figure], 2) for figure in ("p50", "p99", "max")}
    return {**table, "with stalled readers / without": {"n": runs, **ratios}}


if __name__ == "__main__":
    report(measure, "The cost of stalled readers for the others.")
