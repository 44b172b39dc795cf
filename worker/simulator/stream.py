"""Writes frames to a socket: pace, batches, line ends, and actions on the connection.

Start with `send`. It waits until frames are due and writes all of them at once; with `speed=0` frames are always due,
and a write carries a batch. A disconnect of the client ends it: aiohttp cancels the handler of a lost connection, and a
write to a closing one raises ConnectionResetError.
"""

import asyncio
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from aiohttp import web

from worker.simulator.calls import Call
from worker.simulator.directives import ChatRequest
from worker.simulator.frames import ACTIONS, KEEP_ALIVE, TOKENS, Frame, Kind

UNPACED_BATCH = 64  # chunks per write: 14 KiB in OpenAI's shape, few enough that hundreds of streams alternate
RESET_NOW = struct.pack("ii", 1, 0)  # SO_LINGER on, zero seconds: closing sends RST instead of FIN


class Batch(NamedTuple):
    """The frames that are due, joined."""

    data: bytes
    tokens: int
    counted: int
    action: Frame | None
    ended: bool


def take(frames: Iterator[Frame], limit: int, unit: frozenset[Kind]) -> Batch:
    """Take up to `limit` token chunks, and the untimed frames between them, up to the next action."""
    parts: list[bytes] = []
    tokens = counted = 0
    for frame in frames:
        kind = frame.kind
        if kind in ACTIONS:
            return Batch(b"".join(parts), tokens, counted, frame, ended=False)
        parts.append(frame.data)
        if kind in TOKENS:
            tokens += 1
            counted += kind in unit
            if tokens == limit:
                return Batch(b"".join(parts), tokens, counted, None, ended=False)
    return Batch(b"".join(parts), tokens, counted, None, ended=True)


async def send(wire: "Wire", chat: ChatRequest, frames: Iterator[Frame], unit: frozenset[Kind], call: Call) -> None:
    """Stream `frames` to the end, or to the action that ends them."""
    speed = chat.directive.speed
    loop = asyncio.get_running_loop()
    due = loop.time() + chat.directive.delay
    while True:
        await wire.idle_until(due)
        limit = 1 + int((loop.time() - due) * speed) if speed else UNPACED_BATCH
        batch = take(frames, limit, unit)
        call.chunks_sent += batch.counted
        if batch.ended:
            return await wire.write(batch.data, last=True)
        await wire.write(batch.data)
        if batch.action is not None:
            return await wire.perform(batch.action)
        due = due + batch.tokens / speed if speed else loop.time()


@dataclass(frozen=True, slots=True)
class Wire:
    """The connection of one response."""

    response: web.StreamResponse
    transport: asyncio.Transport
    call: Call
    newline: bytes = b"\n"
    keepalive: float = 0.0
    """Seconds without a frame between keep-alive comments; 0: no comments."""
    split: int = 0
    """Maximum bytes per write; 0: whole batches."""
    trickle: float | None = None
    """Seconds over which a batch is spread, byte by byte."""

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """Write `data`, with backpressure. `last`: end the response in the same write.

        A client that stops reading at [DONE] then never disconnects before the end of the response.
        """
        if last:
            self.call.leave()
        if self.newline != b"\n":
            data = data.replace(b"\n", self.newline)
        if self.trickle is not None or self.split:
            await self._write_in_pieces(data)
            data = b""
        self.call.mark_started()
        if last:
            await self.response.write_eof(data)
        elif data:
            await self.response.write(data)

    async def idle_until(self, due: float) -> None:
        """Wait until `due` (loop time) and send keep-alive comments meanwhile; always yields to the event loop."""
        loop = asyncio.get_running_loop()
        while self.keepalive and due - loop.time() > self.keepalive:
            await asyncio.sleep(self.keepalive)
            await self.write(KEEP_ALIVE)
        await asyncio.sleep(due - loop.time())

    async def perform(self, action: Frame) -> None:
        """Perform an action on the connection. A stall ends by cancellation, when the client disconnects."""
        match action.kind:
            case Kind.HANGUP | Kind.RESET:
                await self.break_off(action.data, reset=action.kind is Kind.RESET)
            case Kind.COMMENTS:
                while True:
                    await self.write(KEEP_ALIVE)
                    await asyncio.sleep(self.keepalive or 0.2)
            case _:
                await asyncio.Event().wait()

    async def break_off(self, data: bytes, *, reset: bool) -> None:
        """Announce the length of `data`, send half of it, and end the connection."""
        self.call.mark_started()
        self.call.leave()
        data = data.replace(b"\n", self.newline)
        size = b"%x\r\n" % len(data) if data and self.response.content_length is None else b""
        self.transport.write(size + data[: len(data) // 2])
        if reset:
            # A reset discards data that the kernel does not have yet, and a transport has no event for that moment.
            while self.transport.get_write_buffer_size():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            connection: socket.socket = self.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_NOW)
            self.transport.abort()
        else:
            self.transport.close()

    async def _write_in_pieces(self, data: bytes) -> None:
        """Write `data` in small pieces, cut anywhere, also inside a character or a line end."""
        random, at = Random(len(data)), 0
        loop = asyncio.get_running_loop()
        began, span = loop.time(), self.trickle or 0.0
        while at < len(data):
            size = 1 if self.trickle is not None else random.randint(1, self.split)
            self.call.mark_started()
            await self.response.write(data[at : at + size])
            at += size
            ahead = began + span * at / len(data) - loop.time()
            await asyncio.sleep(ahead if ahead > 0.001 else 0)  # the loop cannot sleep less than a millisecond
