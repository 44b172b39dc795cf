"""The guards of the scripts, each taken away once: the tests must notice.

A mutant of a script is a replacement in its text, which must be there: a guard that was reworded makes its mutant fail
instead of testing nothing. Two guards of the scripts have no mutant here because others do their work as well: without
the check for an ended generation the writer is refused as no longer its owner (`own` is empty then), and the other way
round where `finish` left the owner.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

from broker.redis.client import Script


@dataclass(frozen=True)
class Mutant:
    """What is taken away, and what the schedules then show."""

    name: str
    scripts: tuple[str, ...]
    guard: str
    instead: str
    shows: str


SCHEDULED = [
    Mutant(
        "anybody writes",
        ("append", "finish", "touch"),
        "if m[2] ~= own then return {'FENCED'} end",
        "",
        "a paused worker's text among the next attempt's",
    ),
    Mutant(
        "gaps are written",
        ("append", "finish"),
        "if first > tonumber(m[3]) + 1 then return {'GAP', tonumber(m[3])} end",
        "if first > tonumber(m[3]) + 1 then m[3] = first - 1 end",
        "a log that is not dense, behind a failover",
    ),
    Mutant(
        "a cancel ends what has ended",
        ("cancel",),
        "if TERMINAL[m[2]] then return {'CLOSED', m[2]} end",
        "",
        "two endings",
    ),
    Mutant(
        "a restore takes it from whoever has it",
        ("restore",),
        "if m[1] and m[2] ~= own and tonumber(m[4]) >= tonumber(attempt) then return {'FENCED'} end",
        "",
        "an older attempt behind a newer one",
    ),
]

"""Missed by the random schedules within a few examples."""

DIRECTED = [
    Mutant(
        "every attempt is number one more",
        ("claim",),
        "int(math.max(now * 1024 + tonumber(random), tonumber(previous) + 1))",
        "int(tonumber(previous) + 1)",
        "two claims of one attempt, behind a failover",
    ),
    Mutant(
        "a running generation can be claimed",
        ("claim",),
        "if m[1] == 'in_progress' and not (again and m[4] == ARGV[5]) then return {'RUNNING'} end",
        "",
        "an attempt more than were lost or handed over",
    ),
    Mutant(
        "a claim does not know its own token",
        ("claim",),
        "if m[1] == 'in_progress' and m[4] == m[2] .. '.' .. ARGV[2] then return claimed(m[2], tonumber(m[3])) end",
        "",
        "an attempt that nobody runs, behind a lost reply",
    ),
    Mutant(
        "an ended generation can be claimed",
        ("claim",),
        "if TERMINAL[m[1]] then return {'CLOSED'} end",
        "",
        "an attempt behind the ending",
    ),
    Mutant(
        "a log is made anew",
        ("append", "finish"),
        "'NOMKSTREAM', ",
        "",
        "a log without its beginning",
    ),
    Mutant(
        "anybody hands over",
        ("release",),
        "or m[2] ~= ARGV[2] ",
        "",
        "an attempt that nobody lost",
    ),
    Mutant(
        "a deleted one leaves nothing",
        ("delete",),
        "bury(GID, 'deleted', HOUR)",
        "redis.call('DEL', META)",
        "a deleted generation that its worker brings back",
    ),
    Mutant(
        "an ending from outside takes the owner's next id",
        ("cancel",),
        "local attempt = fresh_attempt(now, m[1], random)",
        "local attempt = m[1]",
        "an event where the owner's next would be",
    ),
    Mutant(
        "what is there is written again",
        ("append", "finish"),
        "for i = at + 3 * (n + 1 - first), #ARGV, 3 do",
        "for i = at, #ARGV, 3 do",
        "text twice, behind a lost reply",
    ),
    Mutant(
        "a restore does not ask when it was known",
        ("restore",),
        "if now - tonumber(ARGV[7]) >= HOUR and not another then return {'GONE'} end",
        "",
        "an expired generation that lives again",
    ),
    Mutant(
        "a restore wants another data set",
        ("restore",),
        "if now - tonumber(ARGV[7]) >= HOUR and not another then return {'GONE'} end",
        "if not another then return {'GONE'} end",
        "a running generation lost, after a failover to before its creation",
    ),
    Mutant(
        "a claim only refuses what was started too often",
        ("claim",),
        "if not again then end_exhausted(now, ARGV[3], x) end",
        "",
        "a generation that is queued and claimed without end",
    ),
    Mutant(
        "a lease is over although nobody watched",
        ("reap",),
        "if not watched then return {'NO'} end",
        "",
        "all that runs begun anew after an outage",
    ),
    Mutant(
        "a reaper's command may come late",
        ("reap",),
        "if now > tonumber(ARGV[6]) then return {'LATE'} end",
        "",
        "what runs begun anew by a command that lay in a server that hung",
    ),
    Mutant(
        "a lease that the clock has prolonged holds",
        ("reap",),
        "if till > now + lease then -- the clock went back: the lease begins now",
        "if false then",
        "a death that is noticed when the clock has caught up",
    ),
    Mutant(
        "a creation may come late",
        ("create",),
        "if now > tonumber(ARGV[14]) then return {'LATE'} end",
        "",
        "a generation of a caller who was refused long ago",
    ),
    Mutant(
        "an ending from outside makes a log",
        ("cancel",),
        "redis.call('XADD', LOG, 'NOMKSTREAM', attempt",
        "redis.call('XADD', LOG, attempt",
        "a log without its beginning, and without a lifetime",
    ),
]
"""Missed by so few of the schedules that each has a test of its own."""


@contextmanager
def mutated(mutant: Mutant) -> Iterator[None]:
    """While it lasts, the guard is missing wherever the script is run."""
    changed: list[tuple[Script, str, str]] = []
    for script in _scripts():
        if script.name in mutant.scripts and mutant.guard in script.source:
            changed.append((script, script.source, script.sha))
            script.source = script.source.replace(mutant.guard, mutant.instead)
            script.sha = hashlib.sha1(script.source.encode(), usedforsecurity=False).hexdigest()
    assert {script.name for script, _, _ in changed} == set(mutant.scripts), f"{mutant.name}: the guard is not there"
    try:
        yield
    finally:
        for script, source, sha in changed:
            script.source, script.sha = source, sha


def _scripts() -> list[Script]:
    modules: list[ModuleType] = [
        module for name, module in list(sys.modules.items()) if name.startswith(("broker", "worker", "tests"))
    ]
    found = {id(value): value for module in modules for value in vars(module).values() if isinstance(value, Script)}
    return list(found.values())
