"""CPU time of each process for a generation and for a chunk (docs/scaling.md): `python -m tests.bench.costs`.

The queue and the logs are on separate servers. CPU time depends less on other load of the machine than rates do.
The cost of a chunk is the difference between long and short generations.
"""

from __future__ import annotations

import asyncio
import statistics

from broker.dev.embedded_redis import EmbeddedRedis
from tests.bench.systems import cpu_seconds
from tests.support import Gateway, Service, gateway, gather, request_body, upstream_sim, worker

CALLERS = 16
EACH = 32  # generations of a caller in one run
SHORT, LONG = 20, 420  # chunks
RUNS = 3
SETTINGS = {"TOKENCAST_UPSTREAM_CONCURRENCY": "64", "TOKENCAST_TENANT_RUNNING": "0", "TOKENCAST_TENANT_QUEUED": "0"}

Seconds = dict[str, float]


async def main() -> None:
    async with (
        EmbeddedRedis() as queue,
        EmbeddedRedis() as logs,
        upstream_sim() as upstream,
        gateway(queue.url, TOKENCAST_STREAMS_URL=logs.url, **SETTINGS) as api,
        worker(queue.url, upstream, TOKENCAST_STREAMS_URL=logs.url, **SETTINGS) as process,
    ):
        pids = {
            "gateway": api.process.process.pid,
            "worker": process.process.pid,
            "Redis of the queue": queue.pid,
            "Redis of the logs": logs.pid,
        }
        await run(api, process, pids, SHORT)  # first connections, imports, scripts
        shorts = [await run(api, process, pids, SHORT) for _ in range(RUNS)]
        longs = [await run(api, process, pids, LONG) for _ in range(RUNS)]
    print(f"{'':<20}{'a generation, µs':>18}{'a chunk, µs':>14}")
    for name in pids:
        short, long = (statistics.median(each[name] for each in runs) for runs in (shorts, longs))
        chunk = (long - short) / (LONG - SHORT)
        print(f"{name:<20}{1e6 * (short - SHORT * chunk):>18.0f}{1e6 * chunk:>14.1f}")


async def run(api: Gateway, process: Service, pids: dict[str, int], chunks: int) -> Seconds:
    """Return the CPU seconds of each process for one generation."""
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    process.lines.clear()
    done = asyncio.create_task(process.says(r"completed", times=CALLERS * EACH))
    body = request_body(f"[[sim length={chunks} speed=0]]", model="sim")

    async def calls() -> None:
        for _ in range(EACH):
            await api.create(body)

    await gather(*(calls() for _ in range(CALLERS)))
    await done
    return {name: (cpu_seconds(pid) - before[name]) / (CALLERS * EACH) for name, pid in pids.items()}


if __name__ == "__main__":
    asyncio.run(main())
