"""A chaos run: every fault we know of, at random from a seed, under generations that are read all the while.

    python -m tests.chaos [--minutes 1] [--seed N]

Ends with a table and exit code 1 where a promise was broken. The seed is printed first; given again, it brings the
same faults at the same seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import time

from tests.chaos.load import Load
from tests.chaos.plan import Asked, Plan, plan
from tests.chaos.verdict import Verdict, judge
from tests.chaos.world import World
from tests.faults.subscriber import client

QUIET = 60.0  # seconds after the last fault within which everybody must have an ending


async def run(chaos: Plan) -> Verdict:
    """The whole plan, then quiet until every reader has its ending, then the verdict."""
    async with World() as world, client() as http:
        load = Load(world, http, chaos)
        poisoned = asyncio.create_task(_kill_whoever_takes_poison(world, load))
        began = time.monotonic()
        work: list[asyncio.Task[None]] = []

        async def at(moment: float) -> None:
            await asyncio.sleep(max(0.0, began + moment - time.monotonic()))

        async def ask(asked: Asked) -> None:
            await at(asked.at)
            await load.run(asked)

        readers = [asyncio.create_task(ask(asked)) for asked in chaos.asked]
        for fault in chaos.faults:
            await at(fault.at)
            if fault.kind == "poison":
                world.done["poison"] += 1
                readers.append(asyncio.create_task(load.run(chaos.asked[0], poison=True)))
            else:
                work.append(asyncio.create_task(world.commit(fault)))
        await asyncio.gather(*work)
        _, hanging = await asyncio.wait(readers, timeout=QUIET)
        for task in (*hanging, poisoned):
            task.cancel()
        ends = await asyncio.gather(*readers, poisoned, return_exceptions=True)
        await load.count_calls()
        load.close()
        verdict = judge(world, load.followed)
        verdict.complaints += [repr(end) for end in ends if isinstance(end, Exception)]
    return verdict


async def _kill_whoever_takes_poison(world: World, load: Load) -> None:
    """A poison generation is one that no worker survives."""
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
    asked = parser.parse_args()
    print(
        f"chaos: {asked.minutes:g} minutes, seed {asked.seed} (make chaos MINUTES={asked.minutes:g} SEED={asked.seed})"
    )
    verdict = asyncio.run(run(plan(asked.seed, asked.minutes * 60)))
    print(verdict)
    return 1 if verdict.complaints else 0


if __name__ == "__main__":
    sys.exit(main())
