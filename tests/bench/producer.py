"""Emit the events that the subscribers count, in its own process: `python -m tests.bench.producer append …`.

Paced by a fixed schedule: chunk i of generation g is due at i/rate + g/(rate × generations). Chunks that are due at the
same time are sent in one write, with one call per generation. With rate 0 it sends a flood: calls of up to 100 chunks,
alternating between the generations, a few in flight. A generation ends directly after its last chunk. The code uses
only sockets and loops, since its processor time is taken from the measured system.

Prints READY, waits for a line (or the end) of standard input, and prints its figures as one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import select
import socket
import statistics
import sys
import time
from array import array
from pathlib import Path

from tests.bench.targets import TARGETS, Refused, Target, bulk

TOGETHER = 100  # chunks in a call of a flood
IN_FLIGHT = 4  # calls
READ = 1 << 18
GRAIN = 0.001  # minimum seconds between two writes: each wakes up the server, which shares the cores with us


class Emitter:
    """Writes calls, and reads their replies between writes."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._socket = target.socket
        self.unanswered = 0
        self._began = time.monotonic()

    def begin(self) -> float:
        """Start the clock. Returns time.monotonic(), like all times here."""
        self._began = time.monotonic()
        return self._began

    def stamps(self) -> tuple[bytes, bytes]:
        """The current time, for a marker and for the log."""
        return b"%016d" % (time.time_ns() // 1000), bulk(int((time.monotonic() - self._began) * 1000))

    def write(self, data: bytes, replies: int) -> None:
        """Write to the socket, and read replies while it is full: otherwise the server may stop reading requests."""
        self.unanswered += replies
        left = memoryview(data)
        while left:
            try:
                left = left[self._socket.send(left, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                select.select([self._socket], [self._socket], [])
                self.read_available()

    def read_available(self) -> None:
        """Read replies without waiting."""
        with contextlib.suppress(BlockingIOError):
            while self.unanswered and self._read(socket.MSG_DONTWAIT):
                pass

    def wait_until(self, unanswered: int) -> None:
        """Wait until at most `unanswered` replies are missing."""
        while self.unanswered > unanswered:
            self._read()

    def _read(self, flags: int = 0) -> bool:
        """Read replies. Returns whether more may be available."""
        data = self._socket.recv(READ, flags)
        if not data:
            raise Refused("the server closed the connection")
        self.unanswered -= self._target.replies(data)
        return len(data) == READ


def paced(target: Target, emitter: Emitter, rate: float) -> array[float]:
    """Emit by the schedule. Returns the delay of each chunk in seconds."""
    generations = len(target.names)
    per_second, total = rate * generations, target.events * generations
    lateness = array("d")
    began = emitter.begin()
    sent = 0
    while sent < total:
        now = time.monotonic()
        due = min(total, int((now - began) * per_second) + 1)
        if due > sent:
            micros, at_ms = emitter.stamps()
            calls = calls_for(target, sent, due, micros, at_ms)
            emitter.write(b"".join([data for data, _ in calls]), sum([replies for _, replies in calls]))
            lateness.extend([now - began - n / per_second for n in range(sent, due)])
            sent = due
        emitter.read_available()
        pause = max(began + sent / per_second, now + GRAIN) - time.monotonic()
        if pause > 0:
            time.sleep(pause)
    return lateness


def calls_for(target: Target, sent: int, due: int, micros: bytes, at_ms: bytes) -> list[tuple[bytes, int]]:
    """The calls for the chunks from `sent` up to `due`, counted over all generations in the order of the schedule."""
    generations, last = len(target.names), target.events - 1
    calls: list[tuple[bytes, int]] = []
    for n in range(sent, min(due, sent + generations)):
        seq, generation = divmod(n, generations)
        if n + generations >= due:
            calls.append(target.one(generation, seq, micros, at_ms))
        else:
            count = (due - 1 - n) // generations + 1
            calls.append(target.many(generation, seq, count, micros, at_ms))
            seq += count - 1
        if seq == last:
            calls.append(target.end(generation))
    return calls


def flood(target: Target, emitter: Emitter) -> None:
    emitter.begin()
    for seq in range(0, target.events, TOGETHER):
        count = min(TOGETHER, target.events - seq)
        for generation in range(len(target.names)):
            data, replies = target.many(generation, seq, count, *emitter.stamps())
            emitter.write(data, replies)
            emitter.wait_until((IN_FLIGHT - 1) * replies)
            if seq + count == target.events:
                emitter.write(*target.end(generation))


def main() -> None:
    parser = argparse.ArgumentParser(description="Emit the events that the subscribers count.")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--names", type=Path, required=True, help="file of generations, keys or paths, one per line")
    parser.add_argument("--events", type=int, required=True, help="events per name")
    parser.add_argument("--rate", type=float, required=True, help="events per second and name; 0: a flood")
    arguments = parser.parse_args()
    try:
        target = TARGETS[arguments.target](arguments.port, arguments.names.read_text().split(), arguments.events)
        emitter = Emitter(target)
        print("READY", flush=True)
        sys.stdin.readline()
        before, started = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        lateness = paced(target, emitter, arguments.rate) if arguments.rate else array("d")
        if not arguments.rate:
            flood(target, emitter)
        emitter.wait_until(0)
    except (Refused, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    spent = resource.getrusage(resource.RUSAGE_SELF)
    cuts = statistics.quantiles(lateness, n=100, method="inclusive") if len(lateness) > 1 else [0.0] * 99
    figures = {
        "events": target.events * len(target.names),
        "seconds": round(time.monotonic() - started, 4),
        "late_p50_ms": round(cuts[49] * 1000, 3),
        "late_p99_ms": round(cuts[98] * 1000, 3),
        "cpu_s": round(spent.ru_utime + spent.ru_stime - before.ru_utime - before.ru_stime, 3),
    }
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
