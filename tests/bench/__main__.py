"""`make bench`: the product, the physical limit and other servers under the same loads, alternating, as one table."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.bench.memory import memory
from tests.bench.native import NoCompiler
from tests.bench.subscriber_loads import flood, idle, live, many_generations, mostly_idle, replay, single
from tests.bench.table import Row, markdown
from tests.bench.waiting import waiting
from tests.bench.worker_loads import create_requests, end_to_end, ingest

LOADS: dict[str, Callable[[bool, int], Awaitable[list[Row]]]] = {
    "W1": live,
    "W2": flood,
    "W3": many_generations,
    "W4": replay,
    "W5": idle,
    "W6": single,
    "W7": ingest,
    "W8": end_to_end,
    "W9": create_requests,
    "W10": mostly_idle,
    "W11": waiting,
    "memory": memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "loads", nargs="*", metavar="W1 … W11 memory", help="only these loads (the latency rows of W7 belong to W8)"
    )
    parser.add_argument("--quick", action="store_true", help="one run of smaller loads, within three minutes")
    parser.add_argument("--runs", type=int, help="default: 3, and 1 with --quick")
    parser.add_argument(
        "--json", metavar="FILE", help="also write every figure of every run; - writes only this, to standard output"
    )
    given = parser.parse_args()
    unknown = set(given.loads) - LOADS.keys()
    if unknown:
        parser.error(f"no such load: {', '.join(sorted(unknown))}")
    runs = given.runs or (1 if given.quick else 3)
    try:
        rows = asyncio.run(measured(given.loads or list(LOADS), given.quick, runs))
    except NoCompiler as missing:
        sys.exit(str(missing))
    if given.json != "-":
        print(f"{machine()}, medians of {runs}\n\n{markdown(rows)}")
        if any(row.remarks for row in rows):
            print("\n`*`: not every subscriber received every event within the time limit.")
    if given.json:
        text = json.dumps({"machine": machine(), "runs": runs, "rows": [row.to_json() for row in rows]}, indent=1)
        print(text) if given.json == "-" else Path(given.json).write_text(text + "\n")


async def measured(loads: list[str], quick: bool, runs: int) -> list[Row]:
    rows: list[Row] = []
    for name in loads:
        started = time.monotonic()
        rows += await LOADS[name](quick, runs)
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return rows


def machine() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = names[0].partition(": ")[2] if names else platform.processor()
    return f"{os.cpu_count()} × {name}, Linux {platform.release()}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
