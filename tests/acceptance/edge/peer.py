"""Raw connections to a gateway, for behaviour that no HTTP client has; and the gateway's connections, memory and CPU
time."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import struct
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support import DEADLINE, Frame, Gateway, gather, wait_until


@dataclass(frozen=True)
class Answer:
    """One complete response. `body` is unchanged, chunked or not."""

    status: int
    headers: dict[str, str]
    body: bytes

    @classmethod
    def parse(cls, raw: bytes) -> Answer:
        head, _, body = raw.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return cls(int(status.split(" ")[1]), headers, body)


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def unchunked(body: bytes) -> bytes:
    """The content of a chunked body (HTTP/1.1); fails if the body does not end correctly."""
    data, at = bytearray(), 0
    while True:
        line = body.find(b"\r\n", at)
        assert line > at, "cut off"
        end = line + 2 + int(body[at:line], 16)
        assert body[end : end + 2] == b"\r\n", "cut off"
        if end == line + 2:
            assert end + 2 == len(body), "data after the end"
            return bytes(data)
        data += body[line + 2 : end]
        at = end + 2


def frames(stream: bytes) -> list[Frame]:
    return [Frame.parse(block) for block in stream.split(b"\n\n") if block]


class Peer:
    """One connection, with access to each byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def get(self, path: str, *, version: str = "1.1", headers: str = "") -> None:
        self.send(f"GET {path} HTTP/{version}\r\nHost: localhost\r\n{headers}\r\n")

    def follow(self, gid: str, *, after: str = "", version: str = "1.1") -> None:
        self.get(f"/v1/generations/{gid}/events", version=version, headers=f"Last-Event-ID: {after}\r\n" * bool(after))

    @property
    def port(self) -> int:
        """The port by which `connections` identifies this one."""
        return self.writer.get_extra_info("sockname")[1]

    def send(self, data: str | bytes) -> None:
        self.writer.write(data.encode() if isinstance(data, str) else data)

    async def until(self, separator: bytes) -> bytes:
        async with asyncio.timeout(DEADLINE):
            return await self.reader.readuntil(separator)

    async def rest(self) -> bytes:
        """Everything until the other side closes or resets the connection."""
        received = bytearray()
        with suppress(ConnectionError):
            async with asyncio.timeout(DEADLINE):
                while data := await self.reader.read(1 << 16):
                    received += data
        return bytes(received)

    async def answer(self) -> Answer:
        """The only response of a connection that the gateway then closes."""
        return Answer.parse(await self.rest())

    def finish(self) -> None:
        """Send a FIN: this side sends no more data."""
        self.writer.write_eof()

    def reset(self) -> None:
        """Send a RST, like a process that was killed with unread data."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


async def dial(api: Gateway, *, receive_buffer: int | None = None) -> Peer:
    """Open a connection; the caller closes it. With a small `receive_buffer` (bytes) the kernel accepts little data for
    a peer that does not read, and asyncio even less."""
    where = urlsplit(api.url)
    sock = socket.socket()
    sock.setblocking(False)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await asyncio.get_running_loop().sock_connect(sock, (where.hostname, where.port))
    return Peer(*await asyncio.open_connection(sock=sock, limit=receive_buffer or 1 << 20))


@asynccontextmanager
async def peer(api: Gateway, *, receive_buffer: int | None = None) -> AsyncGenerator[Peer, None]:
    """A connection that is closed at the end of the context."""
    connected = await dial(api, receive_buffer=receive_buffer)
    try:
        yield connected
    finally:
        connected.writer.transport.abort()


@asynccontextmanager
async def peers(api: Gateway, number: int, *, receive_buffer: int | None = None) -> AsyncGenerator[list[Peer], None]:
    """This number of connections, which are closed at the end of the context."""
    raise_file_limit(number * 2 + 200)
    connected: list[Peer] = []
    try:
        while len(connected) < number:  # in batches: a listening socket's queue is finite
            connected += await gather(
                *(dial(api, receive_buffer=receive_buffer) for _ in range(min(100, number - len(connected))))
            )
        yield connected
    finally:
        for one in connected:
            one.writer.transport.abort()


async def listed(api: Gateway) -> set[str]:
    """The ids of the newest generations."""
    return {one["id"] for one in (await api.http.get("/v1/generations?limit=100")).json()["data"]}


async def new_generation(api: Gateway, before: set[str]) -> str:
    """Wait for the one generation that is not in `before`."""
    found: set[str] = set()

    async def look() -> set[str]:
        found.update(await listed(api) - before)
        return found

    await wait_until(look)
    (gid,) = found
    return gid


def raise_file_limit(files: int) -> None:
    """Raise the limit on open files of this process; some systems begin with 256 or 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (files if hard == resource.RLIM_INFINITY else min(files, hard), hard)
        )


def connections(api: Gateway) -> set[int]:
    """The ports of the peers with an open connection to the gateway, from Linux's own table; without connections that
    it has closed and the kernel still flushes, which belong to no process (inode 0)."""
    own = f":{urlsplit(api.url).port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {
        int(row[2].rpartition(":")[2], 16) for row in rows if row[1].endswith(own) and row[3] != "0A" and row[9] != "0"
    }


def closed_by(server: int, peers: set[int]) -> set[str]:
    """Which side closed the connections between these ports: the kernel keeps TIME_WAIT for the side that was first."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = [(int(row[1][-4:], 16), int(row[2][-4:], 16)) for row in rows if row[3] == "06"]
    by_peer = {"peer" for here, there in ends if there == server and here in peers}
    by_server = {"server" for here, there in ends if here == server and there in peers}
    return by_peer | by_server


def resident_memory(api: Gateway) -> int:
    """The gateway's resident memory in bytes."""
    status = Path(f"/proc/{api.process.process.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))


def cpu_seconds(api: Gateway) -> float:
    """The CPU time that the gateway has used."""
    fields = Path(f"/proc/{api.process.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
