"""A chaos run: random faults of every known kind, from a seed, during generations with readers.

    python -m tests.chaos [--minutes 1] [--seed N]

Prints a table, and exits with code 1 if an invariant was violated. The seed is printed first. The same seed gives the
same faults at the same seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import time

from tests.chaos.load import Load
from tests.chaos.plan import Plan, PlannedGeneration, plan
from tests.chaos.verdict import Verdict, judge
from tests.chaos.world import World
from tests.faults.subscriber import client

SETTLE_TIMEOUT = 60.0  # seconds after the last fault within which every reader must have an ending


async def run(chaos: Plan) -> Verdict:
    """Execute the plan, wait until every reader has its ending, and return the verdict."""
    async with World() as world, client() as http:
        load = Load(world, http, chaos)
        poisoned = asyncio.create_task(_kill_workers_with_poison(world, load))
        began = time.monotonic()
        work: list[asyncio.Task[None]] = []

        async def at(moment: float) -> None:
            await asyncio.sleep(max(0.0, began + moment - time.monotonic()))

        async def execute(request: PlannedGeneration) -> None:
            await at(request.at)
            await load.run(request)

        readers = [asyncio.create_task(execute(request)) for request in chaos.requests]
        for fault in chaos.faults:
            await at(fault.at)
            if fault.kind == "poison":
                world.done["poison"] += 1
                readers.append(asyncio.create_task(load.run(chaos.requests[0], poison=True)))
            else:
                work.append(asyncio.create_task(world.apply(fault)))
        await asyncio.gather(*work)
        _, hanging = await asyncio.wait(readers, timeout=SETTLE_TIMEOUT)
        for task in (*hanging, poisoned):
            task.cancel()
        ends = await asyncio.gather(*readers, poisoned, return_exceptions=True)
        await load.count_calls()
        await world.count_left()
        load.close()
        verdict = judge(world, load.followed)
        verdict.complaints += [repr(end) for end in ends if isinstance(end, Exception)]
    return verdict


async def _kill_workers_with_poison(world: World, load: Load) -> None:
    """Kill every worker that runs a poison generation."""
    seen: dict[int, int] = {}
    while True:
        poison = [one.said.gid for one in load.followed if one.poison and one.said]
        for worker in world.workers:
            service = worker.service
            if service is None:
                continue
            lines = service.lines[seen.get(id(service), 0) :]
            seen[id(service)] = len(service.lines)
            if any(gid in line and "attempt" in line for gid in poison for line in lines):
                async with worker.down(worker.kill):
                    pass
        await asyncio.sleep(0.02)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    arguments = parser.parse_args()
    minutes, seed = arguments.minutes, arguments.seed
    print(f"chaos: {minutes:g} minutes, seed {seed} (make chaos MINUTES={minutes:g} SEED={seed})")
    verdict = asyncio.run(run(plan(seed, minutes * 60)))
    print(verdict)
    return 1 if verdict.complaints else 0


if __name__ == "__main__":
    sys.exit(main())
