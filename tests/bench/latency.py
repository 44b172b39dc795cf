"""Latencies from the upstream to a reader, and from a POST to its first chunk, measured over raw sockets to keep the
client's own time small."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from tests.support import request_body

STAMP = re.compile(rb'"sim_ns":(\d+)')


async def post(url: str, path: str, body: dict[str, object]) -> AsyncIterator[tuple[int, bytes]]:
    """`(arrival in ns, bytes)` of each read of the response, beginning with the headers."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    payload = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(payload)}\r\nConnection: close\r\n\r\n".encode() + payload)
    try:
        while data := await reader.read(65536):
            yield time.time_ns(), data
    finally:
        writer.close()


async def stream_lags(url: str, prompt: str) -> list[float]:
    """Milliseconds from each chunk's timestamp to its arrival."""
    lags: list[float] = []
    rest = b""
    async for at, data in post(url, "/v1/chat/completions", request_body(prompt, model="sim", stream=True)):
        rest += data
        complete, newline, rest = rest.rpartition(b"\n")
        lags += [(at - int(stamp)) / 1e6 for stamp in STAMP.findall(complete + newline)]
    return lags


async def first_chunk(url: str, prompt: str) -> float:
    """Milliseconds from the start of the connection to the first chunk."""
    started = time.time_ns()
    async for at, data in post(url, "/v1/chat/completions", request_body(prompt, model="sim", stream=True)):
        if b"data: " in data:
            return (at - started) / 1e6
    raise AssertionError("no chunk")
