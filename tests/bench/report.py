"""Command line, summary and output of the measurements: a table, or one object with `--json`."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from collections.abc import Awaitable, Callable, Sequence

Rows = dict[str, dict[str, float]]


def row(values: list[float], percentiles: Sequence[int] = (50, 99)) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")  # otherwise a p99 of few can exceed their maximum
    figures = {f"p{percent}": round(cuts[percent - 1], 2) for percent in percentiles}
    return {"n": len(values), **figures, "max": round(max(values), 2)}


def report(measure: Callable[[int], Awaitable[Rows]], description: str) -> None:
    """Run `measure(runs)` with the options of the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    async def measured() -> Rows:
        return await measure(arguments.runs)

    table = asyncio.run(measured())
    if arguments.json:
        print(json.dumps(table))
        return
    columns = list(next(iter(table.values())))[1:]
    print(f"{'':48}{'n':>7}" + "".join(f"{column:>10}" for column in columns))
    for name, figures in table.items():
        print(f"{name:48}{figures['n']:>7}" + "".join(f"{figures[column]:>10.2f}" for column in columns))
