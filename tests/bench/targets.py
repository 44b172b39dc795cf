"""Targets of the producer and their wire formats: templates are built once, only the markers change.

A target converts chunks of one generation that are emitted together into one call: its bytes and its number of replies.
"""

from __future__ import annotations

import re
import secrets
import socket
from abc import ABC, abstractmethod
from typing import Any

import hiredis

from broker.ids import shard_of
from broker.redis.client import Script
from broker.store import keys
from broker.store.commands import lifecycle_keys

Call = tuple[bytes, int]

# The load client's marker in each event is between these two; the physical limit sends the same bytes.
HEAD = b'{"id":"chatcmpl-S'
TAIL = (
    b'","object":"chat.completion.chunk","created":1741569952,"model":"gpt-4o-2024-08-06",'
    b'"system_fingerprint":"fp_44709d6fcb","choices":[{"index":0,"delta":{"content":" stream"},"finish_reason":null}]}'
)
SIZE = len(HEAD) + 7 + 1 + 16 + len(TAIL)
DONE = b"[DONE]"
LEASE = 3_600_000  # ms; it is not renewed
TOKEN = "bench"


class Refused(Exception):
    """An unexpected reply, contained in the message."""


def chunk(seq: int, micros: bytes) -> bytes:
    return b"%b%07dT%b%b" % (HEAD, seq, micros, TAIL)


def bulk(value: Any) -> bytes:
    """Encode one argument of a Redis command."""
    data = value if isinstance(value, bytes) else str(value).encode()
    return b"$%d\r\n%b\r\n" % (len(data), data)


def command(*arguments: Any) -> bytes:
    return b"*%d\r\n%b" % (len(arguments), b"".join(map(bulk, arguments)))


class Target(ABC):
    """One connection to a server on loopback. `names` are its generations."""

    def __init__(self, port: int, names: list[str], events: int) -> None:
        self.names = names
        self.events = events
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @abstractmethod
    def one(self, generation: int, seq: int, micros: bytes, at_ms: bytes) -> Call:
        """The call for a single chunk. `micros`: the time of emission for the marker. `at_ms`: ms since the start."""

    @abstractmethod
    def many(self, generation: int, seq: int, count: int, micros: bytes, at_ms: bytes) -> Call:
        """The call for `count` chunks, beginning with `seq`."""

    @abstractmethod
    def end(self, generation: int) -> Call:
        """The call that ends a generation after its last chunk."""

    @abstractmethod
    def replies(self, data: bytes) -> int:
        """The number of replies completed by these bytes. Raises Refused at the first unexpected one."""


class RedisTarget(Target):
    def __init__(self, port: int, names: list[str], events: int) -> None:
        super().__init__(port, names, events)
        self.parser = hiredis.Reader()
        self._numbers = [bulk(n) for n in range(events + 2)]

    def ask(self, *arguments: Any) -> Any:
        """Send a command and wait for its reply."""
        self.socket.sendall(command(*arguments))
        while (reply := self.parser.gets()) is False:
            data = self.socket.recv(1 << 16)
            if not data:
                raise Refused("Redis closed the connection")
            self.parser.feed(data)
        if isinstance(reply, Exception):
            raise Refused(str(reply))
        return reply

    def replies(self, data: bytes) -> int:
        parser, count = self.parser, 0
        parser.feed(data)
        while (reply := parser.gets()) is not False:
            count += 1
            self.check(reply)
        return count

    @abstractmethod
    def check(self, reply: Any) -> None: ...


class Append(RedisTarget):
    """The product's worker from Redis's point of view: its claim, begin, append and finish, on created generations."""

    def __init__(self, port: int, names: list[str], events: int) -> None:
        super().__init__(port, names, events)
        append, claim, begin = Script("store", "append"), Script("store", "claim"), Script("store", "begin")
        self._finish = Script("store", "finish")
        for script in (append, claim, begin, self._finish):
            self.ask("SCRIPT", "LOAD", script.source)
        self._attempts: list[str] = []
        self._heads: list[bytes] = []
        for gid in names:
            claiming = [*lifecycle_keys(gid), keys.epoch(shard_of(gid))]
            random = secrets.randbelow(1024)
            reply = self.ask("EVALSHA", claim.sha, len(claiming), *claiming, gid, TOKEN, random, LEASE, "", 9)
            if reply[0] != b"OK":
                raise Refused(f"claim of {gid}: {reply}")
            attempt = reply[1].decode()
            self.ask("EVALSHA", begin.sha, 5, *lifecycle_keys(gid), gid, f"{attempt}.{TOKEN}", "default")
            arguments = ("EVALSHA", append.sha, 2, keys.meta(gid), keys.log(gid), f"{attempt}.{TOKEN}", f"{attempt}-")
            self._attempts.append(attempt)
            self._heads.append(b"".join(map(bulk, arguments)))

    # KEYS and ARGV of append.lua: …, first seq, chunks so far, byte cap, 1 with the first token, then type, ms, data.

    def one(self, generation: int, seq: int, micros: bytes, at_ms: bytes) -> Call:
        number = self._numbers[seq + 1]
        return (
            b"*14\r\n%b%b%b$10\r\n1073741824\r\n$1\r\n%d\r\n$1\r\nc\r\n%b$%d\r\n%b%07dT%b%b\r\n"
            % (self._heads[generation], number, number, seq == 0, at_ms, SIZE, HEAD, seq, micros, TAIL)
        ), 1  # fmt: skip

    def many(self, generation: int, seq: int, count: int, micros: bytes, at_ms: bytes) -> Call:
        head = b"*%d\r\n%b%b%b$10\r\n1073741824\r\n$1\r\n%d\r\n" % (
            *(11 + 3 * count, self._heads[generation], self._numbers[seq + 1], self._numbers[seq + count], seq == 0),
        )
        before, after = b"$1\r\nc\r\n%b$%d\r\n%b" % (at_ms, SIZE, HEAD), b"T%b%b\r\n" % (micros, TAIL)
        return head + b"".join([b"%b%07d%b" % (before, n, after) for n in range(seq, seq + count)]), 1

    def end(self, generation: int) -> Call:
        gid, attempt, count = self.names[generation], self._attempts[generation], self.events
        choices = '[{"index":0,"message":{"role":"assistant","content":" stream"},"finish_reason":"stop"}]'
        arguments = ["EVALSHA", self._finish.sha, 5, *lifecycle_keys(gid), gid, f"{attempt}.{TOKEN}", f"{attempt}-"]
        arguments += [count + 1, "completed", "stop", "", "", choices, count]
        arguments += ["ok", 0, '{"finish_reason":"stop","usage":null}']
        return command(*arguments), 1

    def check(self, reply: Any) -> None:
        if not isinstance(reply, list) or reply[0] != b"OK":
            raise Refused(str(reply))


class Xadd(RedisTarget):
    """The streams of the usual gateway: one XADD per event."""

    def __init__(self, port: int, names: list[str], events: int) -> None:
        super().__init__(port, names, events)
        self._heads = [b"*5\r\n$4\r\nXADD\r\n%b$1\r\n*\r\n$1\r\nd\r\n" % bulk(name) for name in names]

    def one(self, generation: int, seq: int, micros: bytes, at_ms: bytes) -> Call:
        return b"%b$%d\r\n%b%07dT%b%b\r\n" % (self._heads[generation], SIZE, HEAD, seq, micros, TAIL), 1

    def many(self, generation: int, seq: int, count: int, micros: bytes, at_ms: bytes) -> Call:
        return b"".join([self.one(generation, n, micros, at_ms)[0] for n in range(seq, seq + count)]), count

    def end(self, generation: int) -> Call:
        return self._heads[generation] + bulk(DONE), 1

    def check(self, reply: Any) -> None:
        if type(reply) is not bytes:
            raise Refused(str(reply))


class Post(Target):
    """One HTTP request per event on a persistent connection, for nchan. `names` are paths."""

    _LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)

    def __init__(self, port: int, names: list[str], events: int) -> None:
        super().__init__(port, names, events)
        self._rest = b""
        self._heads = [
            b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: " % name.encode()
            for name in names
        ]

    def one(self, generation: int, seq: int, micros: bytes, at_ms: bytes) -> Call:
        return b"%b%d\r\n\r\n%b%07dT%b%b" % (self._heads[generation], SIZE, HEAD, seq, micros, TAIL), 1

    def many(self, generation: int, seq: int, count: int, micros: bytes, at_ms: bytes) -> Call:
        return b"".join([self.one(generation, n, micros, at_ms)[0] for n in range(seq, seq + count)]), count

    def end(self, generation: int) -> Call:
        return b"%b%d\r\n\r\n%b" % (self._heads[generation], len(DONE), DONE), 1

    def replies(self, data: bytes) -> int:
        data, at, count = self._rest + data, 0, 0
        while (end := data.find(b"\r\n\r\n", at)) >= 0:
            length = self._LENGTH.search(data, at, end)
            if data[at + 9 : at + 10] != b"2" or length is None:
                raise Refused(data[at:end].decode(errors="replace"))
            end += 4 + int(length[1])
            if end > len(data):
                break
            at, count = end, count + 1
        self._rest = data[at:]
        return count


TARGETS: dict[str, type[Target]] = {"append": Append, "xadd": Xadd, "post": Post}
