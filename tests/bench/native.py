"""The two tools in C, compiled on demand: the load client and the physical limit. Python would be too slow for them.
They are documented at the top of their sources."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from tests.bench.tool import Tool
from tests.support import ROOT

SOURCES = Path(__file__).parent / "native"
COMPILED = ROOT / ".cache" / "bench"


class NoCompiler(Exception):
    """There is no `cc`, or it fails to compile the tools; see the message."""


async def compiled(name: str) -> Path:
    """The program of `native/<name>.c`, compiled if it is missing or outdated. Raises NoCompiler if that fails."""
    source, program = SOURCES / f"{name}.c", COMPILED / name
    changed = max(file.stat().st_mtime for file in (source, *SOURCES.glob("*.h")))
    if program.exists() and program.stat().st_mtime > changed:
        return program
    compiler = shutil.which("cc")
    if compiler is None:
        raise NoCompiler(
            "The bench needs a C compiler, and there is no `cc` (on Debian and Ubuntu: apt-get install gcc)."
        )
    COMPILED.mkdir(parents=True, exist_ok=True)
    unfinished = program.with_suffix(f".{os.getpid()}")  # another process may compile or run it at the same time
    process = await asyncio.create_subprocess_exec(
        *(compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(unfinished), str(source)),
        stderr=asyncio.subprocess.PIPE,
    )
    _, complaints = await process.communicate()
    if process.returncode != 0:
        raise NoCompiler(f"{compiler} failed to compile {source}:\n{complaints.decode(errors='replace')}")
    unfinished.rename(program)
    return program


class Latencies(msgspec.Struct):
    """Microseconds from an event's emission to its arrival at a subscriber, at most 1.6 % too low, `max` is exact."""

    p50: int
    p90: int
    p99: int
    p999: int
    max: int


class Spread(msgspec.Struct):
    p50: float
    p99: float
    max: float


class Received(msgspec.Struct):
    """The outcomes of the connections. Each is counted in one of `complete`, `eof_early`, `http_err`, `conn_err` and
    `timeouts`, except an idle one that was still open at the end."""

    conns: int
    connected: int  # received a 200 response
    connect_s: float  # from the first connect until all were ready; -1 if never
    complete: int
    eof_early: int
    http_err: int
    conn_err: int
    timeouts: int
    events: int
    gaps: int  # events missing before a later one
    dups: int  # events received again or late
    first_last_s: float  # from the first event of any subscriber to the last
    ev_s: float
    mb_s: float
    bytes: int
    recvs: int
    lat_us: Latencies
    ttfb_us: Spread  # from a connection's request to its first event
    span_s: Spread  # from its request until it is complete
    cpu_s: float
    start_us: int  # CLOCK_REALTIME, as are the next three
    ready_us: int
    first_us: int
    last_us: int

    @property
    def whole(self) -> bool:
        """Whether every subscriber received every event, once and in order."""
        return self.complete == self.conns and self.gaps == self.dups == 0


class Subscribers(Tool[Received]):
    """`connections` subscribers, the i-th with `paths[i % len(paths)]`. Each is complete after `events` events, or when
    its stream ends; with `idle` they only stay connected for that many seconds. They start immediately."""

    figures = Received

    def __init__(
        self,
        port: int,
        paths: Sequence[str],
        connections: int,
        *,
        events: int | None = None,
        idle: float | None = None,
        timeout: float = 60.0,
        headers: Mapping[str, str] | None = None,
        ready_when: Literal["answered", "asked", "now"] = "answered",
        first: int = 0,
        arriving: int = 64,
        keep: bool = False,
    ) -> None:
        """`first`: the first seq; `arriving`: concurrent connection attempts; `keep`: keep connections open until all
        are complete."""
        super().__init__()
        self._paths = paths
        when = {"answered": "h", "asked": "c", "now": "n"}[ready_when]
        self._arguments = ["-p", str(port), "-n", str(connections), "-t", str(timeout), "-T", str(timeout)]
        self._arguments += ["-r", when, "-s", str(first), "-c", str(arriving), *(["-k"] if keep else [])]
        self._arguments += ["-e", str(events)] if events is not None else []
        self._arguments += ["-i", str(idle)] if idle is not None else []
        self._arguments += [part for name, value in (headers or {}).items() for part in ("-H", f"{name}: {value}")]

    async def command(self) -> list[str]:
        return [str(await compiled("subscribers")), *self._arguments, "-f", self.lines_in_a_file(self._paths)]


class Sent(msgspec.Struct):
    """The work of the physical limit, from `go` (or the first connection of a replay) until the kernel has accepted the
    last byte."""

    seconds: float
    deliveries: int
    deliveries_s: float
    sends: int
    cpu_s: float
    us_per_send: float


class Fanout(Tool[Sent]):
    """A server that sends `events` events to a number of connections, on `port` after `__aenter__`. With `rate` 0 it
    sends a flood with `together` events at a time, otherwise `rate` events per second; or a `replay`. It is ready when
    all are connected, and starts with `go`, a replay immediately."""

    figures = Sent

    def __init__(
        self, connections: int, events: int, *, rate: float = 200, together: int = 1, replay: bool = False
    ) -> None:
        super().__init__()
        self.port = 0
        self._arguments = ["-p", "0", "-n", str(connections), "-e", str(events), "-r", str(rate), "-k", str(together)]
        self._arguments += ["-R"] if replay else []

    async def command(self) -> list[str]:
        return [str(await compiled("fanout")), *self._arguments]

    async def started(self) -> None:
        self.port = int((await self.says("LISTENING")).split()[1])
