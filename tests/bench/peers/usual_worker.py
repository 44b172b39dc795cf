"""The usual implementation of a worker: a loop over the SDK's chunk objects with one XADD each."""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import time

import msgspec
import redis.asyncio as redis_asyncio
import uvloop
from openai import AsyncOpenAI

from tests.bench.tool import Tool


class Worked(msgspec.Struct):
    seconds: float
    cpu_s: float


class UsualWorker(Tool[Worked]):
    """`count` concurrent streams of `chunks` chunks."""

    figures = Worked

    def __init__(self, redis_url: str, upstream: str, count: int, chunks: int) -> None:
        super().__init__()
        self._arguments = [redis_url, upstream, str(count), str(chunks)]

    async def command(self) -> list[str]:
        return [sys.executable, "-m", "tests.bench.peers.usual_worker", *self._arguments]


async def work(client: AsyncOpenAI, redis: redis_asyncio.Redis, number: int, chunks: int) -> None:
    prompt = f"{number} [[sim length={chunks} speed=0]]"
    stream = await client.chat.completions.create(
        model="sim", messages=[{"role": "user", "content": prompt}], stream=True
    )
    async for chunk in stream:
        await redis.xadd(f"usual:{number}", {"d": chunk.model_dump_json()})
    await redis.delete(f"usual:{number}")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("redis")
    parser.add_argument("upstream")
    parser.add_argument("count", type=int)
    parser.add_argument("chunks", type=int)
    given = parser.parse_args()
    redis = redis_asyncio.Redis.from_url(given.redis)
    async with redis, AsyncOpenAI(base_url=given.upstream, api_key="simulated") as client:
        await work(client, redis, given.count, 10)  # imports, connections
        print("READY", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        await asyncio.gather(*(work(client, redis, number, given.chunks) for number in range(given.count)))
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"seconds": seconds, "cpu_s": cpu}), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
