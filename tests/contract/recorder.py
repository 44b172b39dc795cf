"""Perform exchanges and record the responses as the text of a golden file."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.contract.layout import laid_out
from tests.contract.masks import Masks
from tests.support import DEADLINE, Gateway

Headers = dict[str, str] | list[tuple[str, str]]


@dataclass
class Exchange:
    """A request and the part of its response read so far."""

    request: str
    status: int = 0
    head: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    show_body: bool = True
    source: AsyncIterator[bytes] | None = None

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    async def until(self, marker: str) -> None:
        """Read until the body contains `marker`."""
        assert self.source is not None
        async with asyncio.timeout(DEADLINE):
            while marker.encode() not in self.body:
                self.body += await anext(self.source)

    async def until_block(self, marker: str) -> None:
        """Read to the end of the block that contains `marker`."""
        await self.until(marker)
        assert self.source is not None
        async with asyncio.timeout(DEADLINE):
            while not self.body.endswith(b"\n\n"):
                self.body += await anext(self.source)

    async def stop_at(self, marker: str) -> None:
        """Read until the body contains `marker`, and drop the data after it."""
        await self.until(marker)
        del self.body[self.body.index(marker.encode()) + len(marker) :]

    async def rest(self) -> None:
        """Read to the end of the response."""
        assert self.source is not None
        async with asyncio.timeout(DEADLINE):
            async for piece in self.source:
                self.body += piece

    def shown(self, masks: Masks) -> str:
        body = masks.apply(self.body.decode("utf-8", "backslashreplace"))
        if "content-type: application/json" in self.head.lower():
            body = laid_out(body)
        body = "<not recorded>" if not self.show_body else body
        return f"{masks.apply(self.request)}\n{masks.apply(self.head)}\n\n{body}"


@dataclass(frozen=True)
class Exact:
    """A text that is recorded without masks."""

    text: str


class Recorder:
    """Collects the text of one area's golden file."""

    def __init__(self) -> None:
        self.masks = Masks()
        self._parts: list[tuple[str, str | Exact | Exchange]] = []

    def text(self) -> str:
        return "".join(f"### {self._shown(title)}\n\n{self._shown(part)}\n###\n\n" for title, part in self._parts)

    def _shown(self, part: str | Exact | Exchange) -> str:
        if isinstance(part, Exact):
            return part.text
        return self.masks.apply(part) if isinstance(part, str) else part.shown(self.masks)

    def note(self, title: str, text: str | Iterable[str], *, exact: bool = False) -> None:
        """Record a text that is not an HTTP exchange. `exact`: without masks."""
        lines = (text if isinstance(text, str) else "\n".join(text)).rstrip("\n") + "\n"
        self._parts.append((title, Exact(lines) if exact else lines))

    async def ask(self, title: str, api: Gateway, method: str, path: str, **options: Any) -> Exchange:
        """Send one request and record its whole response."""
        async with self.open(title, api, method, path, **options) as exchange:
            await exchange.rest()
        return exchange

    @asynccontextmanager
    async def open(
        self,
        title: str,
        api: Gateway,
        method: str,
        path: str,
        *,
        headers: Headers | None = None,
        body: Any = None,
        content: bytes | None = None,
        show_body: bool = True,
        show_request: bool = True,
    ) -> AsyncGenerator[Exchange, None]:
        """Send one request. The block reads the response. Exchanges are recorded in the order of their requests."""
        sent = content if body is None else json.dumps(body, ensure_ascii=False).encode()
        given = list(headers.items()) if isinstance(headers, dict) else list(headers or ())
        if body is not None:
            given.append(("content-type", "application/json"))
        exchange = Exchange(_request(method, path, given, sent if show_request else None), show_body=show_body)
        self._parts.append((title, exchange))
        async with api.http.stream(method, path, headers=given, content=sent) as response:
            exchange.status, exchange.headers = response.status_code, dict(response.headers)
            phrase = f"{response.http_version} {response.status_code}"
            raw = [(name.decode(), value.decode()) for name, value in response.headers.raw]
            exchange.source = response.aiter_raw()
            yield exchange
        exchange.head = _head(phrase, raw, len(exchange.body), whole=method != "HEAD")

    async def raw(self, title: str, api: Gateway, request: bytes, shown: str) -> bytes:
        """Send bytes on a new connection and record the response when the server has closed it. `shown`: the request in
        the record."""
        answer = await exchanged(api, request)
        self._parts.append((title, raw_exchange(shown, answer)))
        return answer

    def add(self, title: str, exchange: Exchange) -> None:
        self._parts.append((title, exchange))


def _request(method: str, path: str, headers: list[tuple[str, str]], sent: bytes | None) -> str:
    shown = [f"> {method} {path}"]
    shown += [f"> {name}: {value}" for name, value in headers if name.lower() not in ("authorization", "content-type")]
    shown += [f"> {sent.decode('utf-8', 'backslashreplace')}"] if sent else []
    return "\n".join(shown)


def _head(phrase: str, headers: Iterable[tuple[str, str]], length: int, *, whole: bool) -> str:
    """The version and status, and the headers sorted by name, since their order has no meaning."""
    return "\n".join(
        [phrase, *sorted(f"{name}: {_value(name.lower(), value, length, whole)}" for name, value in headers)]
    )


def _value(name: str, value: str, length: int, whole: bool) -> str:
    if name == "date":
        return "<date>"
    if name == "content-length" and (value == str(length) or not whole):
        return "<length>"
    if name == "retry-after" and value.isdigit() and 1 <= int(value) <= 60:
        return "<seconds>"
    if name == "allow":
        return ", ".join(sorted(value.split(", ")))
    return re.sub(r"/[\d.]+", "/<version>", value) if name == "server" else value


async def exchanged(api: Gateway, request: bytes) -> bytes:
    url = httpx2.URL(api.url)
    async with asyncio.timeout(DEADLINE):
        reader, writer = await asyncio.open_connection(url.host, url.port)
        try:
            writer.write(request)
            return await reader.read()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def raw_exchange(shown: str, answer: bytes) -> Exchange:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    phrase = " ".join(first.split()[:2])  # the reason phrase depends on the Python version
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    if ("transfer-encoding", "chunked") in headers:
        body = unchunked(body)
    exchange = Exchange(f"> {shown}", body=bytearray(body))
    exchange.status = int(phrase.partition(" ")[2] or 0)
    exchange.head = _head(phrase, headers, len(body), whole=not shown.startswith("HEAD"))
    return exchange


def unchunked(body: bytes) -> bytes:
    """The data of the complete chunks."""
    found = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size or b"0", 16)
        found, body = found + body[:length], body[length + 2 :]
    return found
