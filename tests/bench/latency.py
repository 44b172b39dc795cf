"""What the broker adds to an upstream's stream: `make bench`.

Two questions, each asked of a real gateway, worker and Redis, and of the simulated upstream directly, interleaved in
one run: how long from a chunk leaving the upstream to its arrival at a subscriber, and how long from a POST to the
first chunk. The client reads raw sockets, so that its own time hardly counts. On a machine with other work the ratio
between the two lines means more than either.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from broker.embedded import EmbeddedRedis
from tests.bench.report import Rows, report, row
from tests.support import gateway, request_body, upstream_sim, worker

STAMP = re.compile(rb'"sim_ns":(\d+)')


async def post(url: str, path: str, body: dict[str, object]) -> AsyncIterator[tuple[int, bytes]]:
    """(ns of arrival, bytes) of each read of the answer, headers first."""
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
    """ms from each chunk's stamp to its arrival."""
    lags: list[float] = []
    rest = b""
    async for at, data in post(url, "/v1/chat/completions", request_body(prompt, model="sim", stream=True)):
        rest += data
        complete, newline, rest = rest.rpartition(b"\n")
        lags += [(at - int(stamp)) / 1e6 for stamp in STAMP.findall(complete + newline)]
    return lags


async def first_chunk(url: str, prompt: str) -> float:
    """ms from before the connection to the first chunk's bytes."""
    started = time.time_ns()
    async for at, data in post(url, "/v1/chat/completions", request_body(prompt, model="sim", stream=True)):
        if b"data: " in data:
            return (at - started) / 1e6
    raise AssertionError("no chunk")


async def measure(runs: int) -> Rows:
    async with (
        EmbeddedRedis() as redis,
        upstream_sim() as upstream,
        worker(redis.url, upstream),
        gateway(redis.url) as api,
    ):
        direct = upstream.removesuffix("/v1")
        places = {"tokencast": api.url, "upstream": direct}
        lags: dict[str, list[float]] = {name: [] for name in places}
        many: dict[str, list[float]] = {name: [] for name in places}
        firsts: dict[str, list[float]] = {name: [] for name in places}
        for url in places.values():  # connections, imports, caches
            await stream_lags(url, "[[sim stamp=1 length=20 speed=0]]")
        for run in range(runs):
            for name, url in places.items():
                lags[name] += await stream_lags(url, f"{run} [[sim stamp=1 length=100 speed=50]]")
                prompts = [f"{run}.{n} [[sim stamp=1 length=50 speed=20]]" for n in range(50)]
                for one in await asyncio.gather(*(stream_lags(url, prompt) for prompt in prompts)):
                    many[name] += one
            for n in range(40):
                for name, url in places.items():
                    firsts[name].append(await first_chunk(url, f"{run}.{n} [[sim length=3 speed=0]]"))
        table: Rows = {}
        for what, measured in (
            ("chunk, 1 stream at 50/s, ms", lags),
            ("chunk, 50 streams at 20/s, ms", many),
            ("POST to first chunk, ms", firsts),
        ):
            for name in places:
                table[f"{what} · {name}"] = row(measured[name])
        return table


if __name__ == "__main__":
    report(measure, "What the broker adds to an upstream's stream.")
