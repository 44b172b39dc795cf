"""The plan of a chaos run as a function of its seed: generations, their readers, and faults.

The same seed gives the same plan. The exact point of a fault within a process depends on the machine: a replay
has the same faults in the same order at the same seconds, but not at the same instructions.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

WORKERS = 3
GATEWAYS = 2
LEASE = 2.0  # seconds, of every process in the run
QUOTA = 8  # calls that the upstream takes at once; it refuses others

KINDS: dict[str, float] = {
    "kill-worker": 3,
    "kill-gateway": 2,
    "pause-worker": 2,
    "stop-worker": 2,
    "stop-gateway": 2,
    "roll": 0.5,
    "skew-worker": 1,
    "kill-redis": 1,
    "empty-redis": 0.4,
    "cut": 2,
    "reset": 1,
    "half-open": 1,
    "lose-reply": 3,
    "delay": 1,
    "full-redis": 0.7,
    "forget-scripts": 1,
    "poison": 0.5,
    "outage": 1,
}
"""Every fault and its relative frequency."""

SCRIPTS = (
    *("create", "offer", "pull", "claim", "begin", "begun", "append", "touch", "hold", "finish", "done"),
    *("cancel", "release", "defer", "reap"),
)

UPSTREAM = (
    # Valid replies, including unusual ones.
    *[""] * 12,
    "unicode=1",
    "split=7",
    "fault=trickle length=30",
    "fault=gzip",
    "fault=null-content",
    "fault=slow-headers delay=1",
    "newlines=crlf",
    "shape=azure",
    # Temporary faults before the first token.
    "fault=429 times=1 retry_after=1",
    "fault=503 times=2",
    # Lasting faults, with and without a permitted restart.
    "fault=rst at=9 times=1 restart",
    "fault=truncate at=20 times=1 restart",
    "fault=error-frame at=5",
    "fault=truncate at=11",
    "fault=bad-json at=3",
    "fault=400",
)


@dataclass(frozen=True)
class Fault:
    at: float
    """Seconds from the start."""
    kind: str
    target: int
    """The index of the worker or gateway."""
    lasts: float
    detail: str = ""


@dataclass(frozen=True)
class PlannedGeneration:
    """A generation of the plan: its upstream directive, and the actions of its readers and its owner."""

    at: float
    number: int
    length: int
    speed: int
    upstream: str
    joins: tuple[float, ...]
    """Seconds after the creation at which its subscribers connect."""
    completions: int
    """The number of subscribers that read the OpenAI dialect."""
    twice: bool
    """Whether the creation is sent to two gateways at once, with the same key."""
    stalled: bool
    """Whether it has a subscriber that never reads."""
    cancelled_after: float | None
    deleted_after: float | None

    @property
    def unicode(self) -> bool:
        return "unicode" in self.upstream

    @property
    def restarts(self) -> bool:
        return "restart" in self.upstream

    @property
    def fails(self) -> bool:
        """Whether its upstream fails permanently."""
        return "fault=" in self.upstream and ("at=" in self.upstream or "=400" in self.upstream) and not self.restarts

    @property
    def seconds(self) -> float:
        return self.length / self.speed


@dataclass(frozen=True)
class Plan:
    seed: int
    seconds: float
    requests: tuple[PlannedGeneration, ...]
    faults: tuple[Fault, ...]


def plan(seed: int, seconds: float, *, rate: float = 3.0) -> Plan:
    """`rate` generations per second, and a fault every one or two seconds. Every kind occurs once before random
    ones."""
    random = Random(seed)
    return Plan(seed, seconds, _generations(random, seconds, rate), _faults(random, seconds))


def _generations(random: Random, seconds: float, rate: float) -> tuple[PlannedGeneration, ...]:
    at, planned = 0.0, list[PlannedGeneration]()
    while at < seconds:
        upstream = random.choice(UPSTREAM)
        length, speed = random.randint(20, 250), random.choice((20, 40, 80, 200, 400))
        if length / speed > 6:
            length = 6 * speed
        readers = random.randint(1, 7)
        joins = tuple(random.uniform(0, 1.5 * length / speed + 1) * random.randint(0, 1) for _ in range(readers))
        fate = random.random()
        ending = random.uniform(0, length / speed + 1)
        planned.append(
            PlannedGeneration(
                at=at,
                number=len(planned),
                length=30 if "length=30" in upstream else length,
                speed=speed,
                upstream=upstream,
                joins=joins,
                completions=sum(random.random() < 0.2 for _ in joins),
                twice=random.random() < 0.1,
                stalled=random.random() < 0.05,
                cancelled_after=ending if fate < 0.06 else None,
                deleted_after=ending if 0.06 <= fate < 0.1 else None,
            )
        )
        at += random.expovariate(rate)
    return tuple(planned)


def _faults(random: Random, seconds: float) -> tuple[Fault, ...]:
    once = list(KINDS)
    random.shuffle(once)
    pace = min(1.5, (seconds - 1) / (len(once) + 1))
    at = [1 + (number + random.random()) * pace for number in range(len(once))]
    faults = [_fault(random, moment, kind) for moment, kind in zip(at, once, strict=True)]
    while (moment := faults[-1].at + random.uniform(0.4, 1.6) * pace) < seconds:
        faults.append(_fault(random, moment, random.choices(list(KINDS), list(KINDS.values()))[0]))
    return tuple(faults)


def _fault(random: Random, at: float, kind: str) -> Fault:
    lasts = random.uniform(0.2, 2.5 * LEASE if kind == "pause-worker" else 1.5)
    return Fault(at, kind, random.randrange(WORKERS * GATEWAYS), lasts, random.choice(SCRIPTS))
