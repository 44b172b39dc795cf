"""The producer as a tool of the benchmark."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

import msgspec

from tests.bench.tool import Tool


class Produced(msgspec.Struct):
    """`seconds`: from `go` to the last reply. The lateness against the schedule is 0 in a flood."""

    events: int
    seconds: float
    late_p50_ms: float
    late_p99_ms: float
    cpu_s: float


class Producer(Tool[Produced]):
    """Writes `events` events to each of `names`, at `rate` per second, or as a flood if it is 0. Ready when it has
    claimed (append) and connected; starts with `go`.

    `append`: the product's scripts; names are created generations without a worker. `xadd`: Redis streams; names are
    keys. `post`: HTTP; names are paths. The first two need Redis's port.
    """

    figures = Produced

    def __init__(
        self,
        target: Literal["append", "xadd", "post"],
        port: int,
        names: Sequence[str],
        *,
        events: int,
        rate: float = 0,
    ) -> None:
        super().__init__()
        self._names = names
        self._arguments = [target, "--port", str(port), "--events", str(events), "--rate", str(rate)]

    async def command(self) -> list[str]:
        names = self.lines_in_a_file(self._names)
        return [sys.executable, "-m", "tests.bench.producer", *self._arguments, "--names", names]
