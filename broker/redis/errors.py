"""Errors of Redis: the exceptions of both kinds of connection, and what they mean.

The pool raises the library's exceptions, raw connections raise `RespError` (an error reply) and OSError. The functions
here accept both, so that one list says which errors are temporary, which mean that Redis is full, and which redirect to
another server of a cluster.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any, NamedTuple

from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from broker.errors import StorageUnavailable
from broker.redis.url import Node
from broker.runtime.counters import Buckets

MANY_CLIENTS = "max number of clients reached"

UNUSABLE = frozenset({"LOADING", "MASTERDOWN", "CLUSTERDOWN", "BUSY"})
"""First words of error replies with which a new connection is given up."""
DEMOTED = ("NOREPLICAS", "MASTERDOWN")
"""First words, besides READONLY, of a server that is no longer a usable master: the next connection may reach
another."""
TEMPORARY = UNUSABLE | {
    *("READONLY", "NOREPLICAS", "MISCONF"),  # the server's state
    *("NOAUTH", "DENIED"),  # its configuration
    *("TRYAGAIN", "MOVED", "ASK"),  # a cluster's slots
}
"""First words of error replies that depend on the server's state or on our rights there, not on the command: the same
command may succeed later, or on another server."""


class RespError(Exception):
    """An error reply of Redis, with its original text; the first word is its kind."""

    @property
    def kind(self) -> str:
        return str(self).partition(" ")[0]


class ConnectionRefused(ConnectionError):
    """The server answers but cannot be used; the message says why."""


class NotMaster(ConnectionRefused):
    """The server is a replica: its data may be old, and it rejects writes."""


class LoginRefused(ConnectionRefused):
    """User name or password are wrong or missing."""


class UrlRefused(ConnectionRefused):
    """The server does not match the URL: it lacks the database, or is not a cluster."""


class TlsFailed(ConnectionRefused):
    """No trusted TLS connection could be established."""


class ClosedAtOnce(ConnectionRefused):
    """The server closes a new connection instead of answering."""

    def __init__(self, *, secure: bool) -> None:
        guess = "requires a client certificate, set ssl_certfile" if secure else "expects TLS, use rediss:// in the URL"
        super().__init__(f"it closes new connections at once; if it {guess}")


# --- what an error means ---


def is_temporary(error: BaseException) -> bool:
    """Return whether the error depends on the server's state or on our rights there, so that only its operator, or
    time, can resolve it. The library has classes for some of these errors, and removes their first word."""
    if isinstance(error, ReadOnlyError | NoPermissionError):
        return True
    known = isinstance(error, ResponseError | RespError) and _kind(error) in TEMPORARY
    return known or forbidden_command(error) is not None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether Redis has reached its memory limit. Redis 6 wraps the error if a script meets it."""
    return isinstance(error, OutOfMemoryError) or _kind(error) == "OOM" or "-OOM " in str(error)


def is_demoted(error: ResponseError) -> bool:
    """Return whether the server is no longer a usable master: demoted, or without contact to its replicas."""
    return isinstance(error, ReadOnlyError) or _kind(error) in DEMOTED


def _kind(error: BaseException) -> str:
    return str(error).partition(" ")[0]


class Redirection(NamedTuple):
    """MOVED: the slot is on another node. ASK: only this command is to be sent there, after ASKING."""

    kind: str
    node: Node


def redirection_of(error: Exception, by: Node) -> Redirection | None:
    """Return the redirection in an error such as `MOVED 3999 127.0.0.1:6381`; None if it is another error."""
    kind, _, rest = str(error).partition(" ")
    if kind not in ("MOVED", "ASK"):
        return None
    host, _, port = rest.rpartition(" ")[2].rpartition(":")
    return Redirection(kind, (host_or_queried(host, by), int(port)))


def host_or_queried(host: str, queried: Node) -> str:
    """Return the host, or the host of the queried node if it is missing: a node that does not know its host, or is
    configured not to announce it (`cluster-preferred-endpoint-type`), omits it or sends `?`."""
    return host if host not in ("", "?") else queried[0]


def describe_error(error: BaseException) -> str:
    """Describe an error for a log; a command that an ACL forbids is named."""
    if (command := forbidden_command(error)) is not None:
        return f"this user has no permissions to run {command}"
    if isinstance(error, RespError | ConnectionRefused):
        return str(error)
    return type(error).__name__


def forbidden_command(error: BaseException) -> str | None:
    """Return the command that an ACL forbids if the error, of any of the clients, reports that. Redis 7.0 does not name
    a command that a script tried."""
    text = str(error)
    if found := re.search(r"no permissions to run the '([^']+)' command", text):
        return found[1].upper().replace("|", " ")
    return "a command of the scripts" if "executing the script can't run this command" in text else None


# --- StorageUnavailable ---


class storage_errors:  # noqa: N801 - used like a function: `with storage_errors():`
    """Turn the library's exceptions into StorageUnavailable, except errors that a caller can handle. Record the
    duration."""

    def __init__(self, latency: Buckets | None = None) -> None:
        self._latency = latency

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if self._latency is not None:
            self._latency.observe(time.monotonic() - self._began)
        if isinstance(error, AuthenticationError | LoginRefused):
            raise StorageUnavailable("Redis rejects the user name or password.") from error
        if isinstance(error, TlsFailed):
            raise StorageUnavailable(f"No TLS connection to Redis: {error}.") from error
        if isinstance(error, ClosedAtOnce) or (error is not None and isinstance(error.__cause__, ClosedAtOnce)):
            raise StorageUnavailable(f"Redis does not answer: {error}.") from error
        if isinstance(error, ConnectionRefused):
            raise StorageUnavailable(f"Redis cannot be used: {error}") from error
        if isinstance(error, (RedisConnectionError, RedisTimeoutError, OSError, asyncio.TimeoutError)):
            raise StorageUnavailable from error
        if isinstance(error, ResponseError) and (is_out_of_memory(error) or is_temporary(error)):
            raise StorageUnavailable(f"Redis rejects the command: {error}") from error


def in_place(reply: Any) -> Any:
    """Return a reply; the StorageUnavailable for it if it is an error that means that."""
    if not isinstance(reply, Exception):
        return reply
    try:
        with storage_errors():
            raise reply
    except Exception as error:
        return error


def is_forbidden(error: StorageUnavailable) -> bool:
    """Return whether missing rights of the user are the reason."""
    cause = error.__cause__
    return isinstance(cause, NoPermissionError) or (cause is not None and forbidden_command(cause) is not None)


def configuration_error(error: StorageUnavailable) -> str | None:
    """Return what is wrong with the URL or its user if that is the reason, which only a restart can resolve. A rejected
    login or certificate is not included: it may still be corrected on the server."""
    cause = error.__cause__
    if isinstance(cause, UrlRefused) or (cause is not None and is_forbidden(error)):
        return describe_error(cause)
    return None
