"""A receiver of webhooks inside a test's own process, which answers as the test decides."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.servers.tcp import TcpServer
from tests.support import DEADLINE, wait_until

SECRET = "whsec_" + base64.b64encode(b"an example of thirty-two bytes, ok").decode()
ACCEPTED = b"HTTP/1.1 204 No Content\r\n\r\n"


def answer(status: int, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status} Status", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass(frozen=True)
class Received:
    """A request."""

    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Receiver:
    """Answers each request with `reply`; without an answer (None) it hangs until it is closed."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._server = TcpServer(self._serve, tls=tls)
        self._scheme = "https" if tls else "http"
        self.requests: list[Received] = []
        self.reply: Callable[[Received], bytes | None] = lambda _: ACCEPTED
        self.at_once: list[int] = []
        """Of each request how many were being answered when it came, itself included."""
        self._busy = 0

    @property
    def url(self) -> str:
        return f"{self._scheme}://{self._server.address}"

    @property
    def port(self) -> int:
        return self._server.port

    def open(self) -> None:
        self._server.open()

    async def close(self) -> None:
        await self._server.close()

    async def received(self, count: int) -> list[Received]:
        """Wait for this many requests."""
        await wait_until(lambda: len(self.requests) >= count)
        return self.requests

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        request = Received(first.split(" ")[1], headers, body)
        self.requests.append(request)
        self._busy += 1
        self.at_once.append(self._busy)
        try:
            reply = self.reply(request)
            if reply is None:
                async with asyncio.timeout(DEADLINE):
                    await reader.read()  # until the sender gives up
                return
            writer.write(reply)
            await writer.drain()
        finally:
            self._busy -= 1


@asynccontextmanager
async def webhook_receiver(tls: ssl.SSLContext | None = None) -> AsyncGenerator[Receiver, None]:
    receiver = Receiver(tls)
    receiver.open()
    try:
        yield receiver
    finally:
        await receiver.close()
