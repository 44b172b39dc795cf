"""One raw connection to Redis: pipelines of commands, parsed by hiredis as they come from the socket.

For the two hot paths only (the hub's blocking readers, the worker's appender): on XREAD it is two to three times
cheaper than the library's client (measured: 1.27 M against 0.48 M entries/s at COUNT 1000). One owner per
connection, one pipeline at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Sequence
from typing import Any, Self, cast

import hiredis

from broker.address import Address, Node

Argument = bytes | str | int | float
Reply = Any  # bytes, int, None or a list of them, as the command has it

# A dead peer is noticed after 15 + 3 × 5 s: without this a half-open connection waits for ever.
KEEPALIVE: dict[int, int | bytes] = {
    getattr(socket, name): value
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
}


class RespError(Exception):
    """Redis answered with an error; the text is its own, the first word its kind."""

    @property
    def kind(self) -> str:
        return str(self).partition(" ")[0]


class Refused(ConnectionError):
    """The server answers, but is not one for us; the message says why."""


class NotMaster(Refused):
    """It is a replica: it may be behind, and takes no writes."""


class RespConnection(asyncio.Protocol):
    """Raises OSError (ConnectionError, TimeoutError) once the connection is of no more use.

    A protocol of its own: with asyncio's streams a call costs 16 µs of CPU, so it costs 11."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._parser = hiredis.Reader(replyError=RespError)
        self._replies: list[Reply] = []
        self._expected = 0
        self._answer: asyncio.Future[list[Reply]] | None = None

    @classmethod
    async def open(cls, address: Address, node: Node, *, any_role: bool = False, timeout: float = 2.0) -> Self:
        """Connects to one of the servers of an address, authenticates and selects the database. NotMaster from a
        replica, unless `any_role`."""
        options = address.options
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(timeout):
            if "path" in options:
                _, connection = await loop.create_unix_connection(lambda: cls(node), options["path"])
            else:
                secure = _tls(options) if address.secure else None
                _, connection = await loop.create_connection(lambda: cls(node), *node, ssl=secure)
                _keep_alive(connection._transport)
            try:
                await connection._greet(options, any_role)
            except BaseException:
                connection.close()
                raise
        return connection

    async def _greet(self, options: dict[str, Any], any_role: bool) -> None:
        commands: list[tuple[Argument, ...]] = [] if any_role else [("HELLO",)]
        if options.get("db"):
            commands.insert(0, ("SELECT", options["db"]))
        if options.get("password"):
            user = (options["username"],) if options.get("username") else ()
            commands.insert(0, ("AUTH", *user, options["password"]))
        replies = await self.pipeline(commands, timeout=2.0)
        if not any_role and is_replica(replies.pop()):
            raise NotMaster(f"{self.node[0]}:{self.node[1]} is a replica")
        for reply in replies:
            if isinstance(reply, RespError):
                raise Refused(reply.kind)

    async def still_master(self) -> bool:
        """A demoted server may go on answering reads, from behind."""
        (reply,) = await self.pipeline((("HELLO",),), timeout=5.0)
        return not is_replica(reply)

    async def pipeline(self, commands: Sequence[tuple[Argument, ...]], *, timeout: float) -> list[Reply]:
        """Replies in order; an error reply is a RespError in its place, not raised."""
        if not commands:
            return []
        packed = b"".join([hiredis.pack_command(command) for command in commands])  # pyright: ignore
        return await self.send(packed, len(commands), timeout=timeout)

    async def send(self, packed: bytes, count: int, *, timeout: float) -> list[Reply]:
        """As `pipeline`, of so many commands that are packed already."""
        return await self.begin(packed, count, timeout=timeout)

    def begin(self, packed: bytes, count: int, *, timeout: float) -> asyncio.Future[list[Reply]]:
        """As `send`, whose replies somebody waits for later, or looks for."""
        if self._transport.is_closing():
            raise ConnectionResetError("Redis closed the connection")
        loop = asyncio.get_running_loop()
        self._expected = count
        answer = self._answer = loop.create_future()
        self._timer = loop.call_later(timeout, _expire, answer)
        self._transport.write(packed)
        return answer

    async def call(self, *command: Argument, timeout: float) -> Reply:
        """One command's reply; RespError is raised."""
        (reply,) = await self.pipeline((command,), timeout=timeout)
        return raised(reply)

    def close(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            self._transport.abort()

    # --- what the loop calls -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        replies, parser = self._replies, self._parser
        try:
            parser.feed(data)
            while (reply := parser.gets()) is not False:
                replies.append(reply)
        except hiredis.HiredisError:
            self._transport.abort()  # it is no Redis
        if len(replies) >= self._expected and self._answer is not None and not self._answer.done():
            self._timer.cancel()
            self._replies = []
            self._answer.set_result(replies)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._timer.cancel()
            self._answer.set_exception(ConnectionResetError("Redis closed the connection"))


def _expire(answer: asyncio.Future[list[Reply]]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError())


def raised(reply: Reply) -> Reply:
    """The reply, unless it is an error, of ours or of the library's."""
    if isinstance(reply, Exception):
        raise reply
    return reply


def bulk(value: bytes) -> bytes:
    """One argument of a packed command."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


def is_replica(hello: Reply) -> bool:
    """HELLO tells the role to everybody; ROLE would need administrator's rights. Unknown where it is refused."""
    if isinstance(hello, RespError):
        return False
    return dict(zip(hello[::2], hello[1::2], strict=True)).get(b"role") == b"replica"


def _tls(options: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    if options.get("ssl_cert_reqs") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if options.get("ssl_certfile"):
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    return context


def _keep_alive(transport: asyncio.Transport) -> None:
    sock: socket.socket = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
