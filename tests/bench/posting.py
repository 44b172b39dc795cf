"""Create generations as fast as they are accepted, over persistent connections: `python -m tests.bench.posting`.

Each connection has one request in flight. Prints READY, waits for a line of standard input, and prints its figures as
one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
import time

import msgspec
import uvloop

from tests.bench.tool import Tool
from tests.support import request_body


class Posted(msgspec.Struct):
    seconds: float
    p50_ms: float
    p99_ms: float


class Poster(Tool[Posted]):
    """`requests` requests in total, over `connections` connections."""

    figures = Posted

    def __init__(self, port: int, connections: int, requests: int) -> None:
        super().__init__()
        self._arguments = [str(port), str(connections), str(requests)]

    async def command(self) -> list[str]:
        return [sys.executable, "-m", "tests.bench.posting", *self._arguments]


async def post(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: int, took: list[float]) -> None:
    body = json.dumps(request_body()).encode()
    head = "POST /v1/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n"
    for _ in range(count):
        started = time.perf_counter()
        writer.write(head.encode() + b"\r\n" + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", answer)
        assert answer.startswith(b"HTTP/1.1 202 "), answer
        assert length is not None, answer
        await reader.readexactly(int(length[1]))
        took.append((time.perf_counter() - started) * 1000)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("port", "connections", "requests"):
        parser.add_argument(name, type=int)
    given = parser.parse_args()
    streams = [await asyncio.open_connection("127.0.0.1", given.port) for _ in range(given.connections)]
    print("READY", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    took: list[float] = []
    started = time.perf_counter()
    await asyncio.gather(*(post(*stream, given.requests // given.connections, took) for stream in streams))
    seconds = (time.perf_counter() - started) * given.requests / len(took)
    figures = {"seconds": seconds, "p50_ms": statistics.median(took), "p99_ms": statistics.quantiles(took, n=100)[98]}
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
