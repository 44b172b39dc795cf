"""Subscribers that handle faults as clients do: they reconnect with their cursor until they have an ending."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp

from tests.faults.oracle import Said, Shown, ShownCompletion
from tests.support import Frame

LONGEST_RETRY = 1.0  # seconds; upper bound of a server's `retry:`, which keeps the tests short


class Subscriber:
    """An EventSource on a generation. `gateways()` returns the URL of each connection, possibly a different one each
    time."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        gateways: Callable[[], str],
        said: Said,
        *,
        leave: Callable[[], bool] = lambda: False,
    ) -> None:
        self._http = http
        self._gateways = gateways
        self._leave = leave
        self.shown = Shown(said)
        self.connections = 0
        self.cut = 0
        """Responses that broke off in the middle, as when the gateway was killed."""
        self.statuses: list[int] = []
        self.times: dict[str, float] = {}
        """The loop time of the last event of each kind."""
        self._retry = 0.1
        self._answered = False

    async def run(self) -> Subscriber:
        """Follow the generation until it has ended."""
        while self.shown.ending is None:
            self.connections += 1
            self._answered = False
            try:
                await self._connection()
            except (aiohttp.ClientError, ConnectionError):
                self.cut += self._answered
            if self.shown.ending is None:
                await asyncio.sleep(min(self._retry, LONGEST_RETRY) * random.uniform(0.5, 1))
        return self

    async def _connection(self) -> None:
        cursor = self.shown.cursor
        headers = {"last-event-id": cursor} if cursor else {}
        url = f"{self._gateways()}/v1/generations/{self.shown.said.gid}/events"
        async with self._http.get(url, headers=headers) as response:
            self._answered = True
            self.statuses.append(response.status)
            if response.status == 204:
                self.shown.complain("ending", "204 before any ending")
                self.shown.ending = "nothing"
            elif response.status in (404, 410):
                self.shown.ending = "gone"
            elif response.status != 200:  # an EventSource would stop reconnecting
                self.shown.complain("refused", f"{response.status} {await response.text()}")
            else:
                async for frame in frames_of(response):
                    self._take(frame)
                    if self._leave():
                        return

    def _take(self, frame: Frame) -> None:
        for line in frame.raw.split(b"\n"):
            if line.startswith(b"retry:"):
                self._retry = int(line[6:]) / 1000
        self.shown.take(frame)
        if frame.event:
            self.times[frame.event] = asyncio.get_running_loop().time()


class CompletionSubscriber:
    """An OpenAI client that reads a stored completion as a stream and knows how to react to each error frame."""

    def __init__(self, http: aiohttp.ClientSession, gateways: Callable[[], str], said: Said) -> None:
        self._http = http
        self._gateways = gateways
        self.shown = ShownCompletion(said)
        self.connections = 0
        self.cut = 0
        self._answered = False

    async def run(self) -> CompletionSubscriber:
        while self.shown.ending is None:
            self.connections += 1
            self._answered = False
            try:
                await self._connection()
            except (aiohttp.ClientError, ConnectionError):
                self.cut += self._answered
            if self.shown.ending is None:
                await asyncio.sleep(random.uniform(0.05, 0.2))
        return self

    async def _connection(self) -> None:
        cursor, self.shown.error = self.shown.cursor, None
        params = {"stream": "true", **({"after": cursor} if cursor else {})}
        url = f"{self._gateways()}/v1/chat/completions/{self.shown.said.gid}"
        async with self._http.get(url, params=params) as response:
            self._answered = True
            if response.status in (404, 410):
                self.shown.ending = "gone"
            elif response.status == 503:
                return
            elif response.status != 200:
                # Before any text has been sent, the status code says how the generation ended.
                self.shown.error = (await response.json())["error"]["code"]
                self._after_error()
            else:
                async for frame in frames_of(response):
                    self.shown.take(frame)
                if self.shown.error is not None:
                    self._after_error()
                elif self.shown.ending is None:
                    self.shown.complain("ending", "a clean end without [DONE] or an error, which SDKs treat as success")

    def _after_error(self) -> None:
        code = self.shown.error
        if code in ("generation_reset", "invalid_cursor"):
            self.shown.forget()
        elif code == "generation_cancelled":
            self.shown.ending = "cancelled"
        elif code in ("generation_gone", "generation_not_found"):
            self.shown.ending = "gone"
        elif code not in ("server_draining", "storage_unavailable"):
            self.shown.ending = "failed"


async def frames_of(response: aiohttp.ClientResponse) -> AsyncIterator[Frame]:
    """The complete blocks. An incomplete one at the end of a broken connection is dropped, as the specification
    says."""
    buffer = b""
    async for data in response.content.iter_any():
        *blocks, buffer = (buffer + data).split(b"\n\n")
        for block in blocks:
            yield Frame.parse(block)


@asynccontextmanager
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    """A client without a connection limit that soon gives up on a gateway that accepts no connection."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=60)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        yield http
