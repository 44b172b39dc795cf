"""The handshake of a new connection to Redis, shared by the pool and the raw connections: TLS, login, client name,
database and role."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Generator, Sequence
from typing import Any

from broker.redis import tls
from broker.redis.errors import (
    MANY_CLIENTS,
    UNUSABLE,
    ConnectionRefused,
    LoginRefused,
    NotMaster,
    RespError,
    TlsFailed,
    UrlRefused,
    describe_error,
)
from broker.redis.url import Node, RedisUrl

Argument = bytes | str | int | float
Reply = Any  # bytes, int, None or a list of them, depending on the command

# A dead peer is detected after 15 + 3 × 5 s. Without keepalive, a half-open connection waits indefinitely.
KEEPALIVE: dict[int, int | bytes] = {
    getattr(socket, name): value
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
}


def is_replica(hello: Reply) -> bool:
    """Read the role from a reply to HELLO: every user may run it, whereas ROLE requires administrator's rights. False
    if HELLO was rejected, because the role is then unknown."""
    if isinstance(hello, RespError):
        return False
    return dict(zip(hello[::2], hello[1::2], strict=True)).get(b"role") == b"replica"


def greeting(address: RedisUrl, *, any_role: bool = False) -> list[tuple[Argument, ...]]:
    """Return the first commands on a connection of either kind: login, client name, database, role."""
    commands: list[tuple[Argument, ...]] = []
    if address.username:
        commands.append(("AUTH", address.username, address.password or ""))
    elif address.password:
        commands.append(("AUTH", address.password))
    if address.client_name:
        commands.append(("CLIENT", "SETNAME", address.client_name))
    if address.db:
        commands.append(("SELECT", address.db))
    if not any_role:
        commands.append(("HELLO",))
    return commands


def check_greeting(commands: Sequence[tuple[Argument, ...]], replies: Sequence[Reply], node: Node) -> None:
    """Raise the errors that `RespConnection.open` documents. Messages never repeat the reply to AUTH, which may contain
    the password."""
    for (name, *arguments), reply in zip(commands, replies, strict=True):
        check_reply(str(name), reply, node)
        if name == "SELECT" and isinstance(reply, RespError):
            reason = describe_error(reply).removeprefix("ERR ")
            raise UrlRefused(f"database {arguments[0]} cannot be used: {reason}")


def check_reply(command: str, reply: Reply, node: Node) -> None:
    """Check the reply to one of the first commands. `command` is empty if the server sent a reply before any
    command."""
    kind = reply.kind if isinstance(reply, RespError) else ""
    if kind in UNUSABLE:
        raise ConnectionRefused(kind)
    if kind == "DENIED":
        raise ConnectionRefused("it is in protected mode, which accepts only clients on the same machine")
    if MANY_CLIENTS in str(reply):
        raise ConnectionRefused(MANY_CLIENTS)
    if kind == "NOAUTH" or (command == "AUTH" and kind):
        raise LoginRefused("it rejects the user name or password")
    if command == "HELLO" and is_replica(reply):
        raise NotMaster(f"{node[0]}:{node[1]} is a replica")


def tls_arguments(address: RedisUrl) -> dict[str, Any]:
    """Return the TLS arguments of `create_connection`. The handshake times out before the whole attempt does, so that a
    failed handshake can be distinguished from an unreachable server."""
    if address.tls is None:
        return {}
    return {"ssl": address.tls, "ssl_handshake_timeout": address.connect_timeout * 0.9}


@contextlib.contextmanager
def tls_failures(node: Node) -> Generator[None]:
    """Turn a failed handshake into TlsFailed."""
    try:
        yield
    except (ssl.SSLError, ConnectionAbortedError) as error:
        raise TlsFailed(tls.failure(error, node[0])) from error
