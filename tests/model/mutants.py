"""Mutants of the scripts, each without one guard. The tests must detect every mutant.

A mutant is a replacement in the text of a script. The guard must be in the text, so that a mutant of a reworded guard
fails rather than testing nothing. Two guards have no mutant, because other guards cover them: without the check for an
ended generation the writer is refused as no longer the owner (`own` is empty then), and vice versa if `finish` left the
owner.
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
    """The removed guard, and the fault that the schedules then find."""

    name: str
    scripts: tuple[str, ...]
    guard: str
    replacement: str
    fault: str


SCHEDULED = [
    Mutant(
        "writes without owner check",
        ("append", "finish", "touch"),
        "if m[2] ~= own then return {'FENCED'} end",
        "",
        "a paused worker's text within the next attempt",
    ),
    Mutant(
        "writes without gap check",
        ("append", "finish"),
        "if first > tonumber(m[3]) + 1 then return {'GAP', tonumber(m[3])} end",
        "if first > tonumber(m[3]) + 1 then m[3] = first - 1 end",
        "a log that is not dense after a failover",
    ),
    Mutant(
        "a cancel of an ended generation",
        ("cancel",),
        "if TERMINAL[m[2]] then return {'CLOSED', m[2]} end",
        "",
        "two endings",
    ),
    Mutant(
        "a restore without owner check",
        ("restore",),
        "m[2] ~= own and tonumber(newest_attempt(m[4], m[5])) >= tonumber(attempt)",
        "false",
        "an older attempt after a newer one",
    ),
]

"""Mutants that the random schedules detect within a few examples."""

DIRECTED = [
    Mutant(
        "attempt numbers are only incremented",
        ("claim",),
        "int(math.max(now * 1024 + tonumber(random), tonumber(previous) + 1))",
        "int(tonumber(previous) + 1)",
        "two claims with the same attempt number after a failover",
    ),
    Mutant(
        "a running generation can be claimed",
        ("claim",),
        "if m[1] ~= 'queued' or (m[4] ~= '' and tonumber(m[7]) > now) then return {'RUNNING'} end",
        "",
        "more attempts than losses and hand-overs",
    ),
    Mutant(
        "a claim ignores its own token",
        ("claim",),
        "m[4] == newest .. '.' .. ARGV[2]",
        "false",
        "an attempt that no worker runs, after a lost reply",
    ),
    Mutant(
        "an ended generation can be claimed",
        ("claim",),
        "if TERMINAL[m[1]] then return {'CLOSED'} end",
        "",
        "an attempt after the ending",
    ),
    Mutant(
        "a lost log is recreated",
        ("append", "finish"),
        "'NOMKSTREAM', ",
        "",
        "a log without its beginning",
    ),
    Mutant(
        "a hand-over without owner check",
        ("release",),
        "or m[2] ~= ARGV[2] ",
        "",
        "an attempt without a loss",
    ),
    Mutant(
        "a deletion leaves no tombstone",
        ("delete",),
        "bury(GID, 'deleted', HOUR)",
        "redis.call('DEL', META)",
        "a deleted generation that its worker restores",
    ),
    Mutant(
        "an external ending takes the owner's next id",
        ("cancel",),
        "local attempt = fresh_attempt(now, newest_attempt(m[1], m[3]), random)",
        "local attempt = m[1]",
        "an event with the owner's next id",
    ),
    Mutant(
        "a repeated append writes existing events again",
        ("append", "finish"),
        "for i = at + 3 * (n + 1 - first), #ARGV, 3 do",
        "for i = at, #ARGV, 3 do",
        "duplicate text after a lost reply",
    ),
    Mutant(
        "a restore ignores the time of the last contact",
        ("restore",),
        "if now - tonumber(ARGV[7]) >= HOUR and not another then return {'GONE'} end",
        "",
        "an expired generation that is restored",
    ),
    Mutant(
        "a restore requires another data set",
        ("restore",),
        "if now - tonumber(ARGV[7]) >= HOUR and not another then return {'GONE'} end",
        "if not another then return {'GONE'} end",
        "a running generation lost after a failover to a state before its creation",
    ),
    Mutant(
        "a claim beyond the attempt budget is only refused",
        ("claim",),
        "if not again then end_exhausted(now, ARGV[3], x) end",
        "",
        "a generation that is queued and claimed endlessly",
    ),
    Mutant(
        "an unobserved lease counts as expired",
        ("reap",),
        "if not watched then return {'NO'} end",
        "",
        "all running generations restarted after an outage",
    ),
    Mutant(
        "a late reap is accepted",
        ("reap",),
        "if now > tonumber(ARGV[6]) then return {'LATE'} end",
        "",
        "a running generation restarted by a command that was delayed in a hung server",
    ),
    Mutant(
        "a lease prolonged by the clock stays valid",
        ("reap",),
        "if till > now + lease then -- the clock went back: the lease begins now",
        "if false then",
        "a death that is noticed only after the clock has caught up",
    ),
    Mutant(
        "a late creation is accepted",
        ("create",),
        "if now > tonumber(ARGV[14]) then return {'LATE'} end",
        "",
        "a generation of a caller that was refused long ago",
    ),
    Mutant(
        "an external ending creates a log",
        ("cancel",),
        "redis.call('XADD', LOG, 'NOMKSTREAM', attempt",
        "redis.call('XADD', LOG, attempt",
        "a log without its beginning and without a lifetime",
    ),
    Mutant(
        "a claim ignores the end of the waiting",
        ("claim",),
        "if m[8] and m[8] ~= '' and tonumber(m[8]) <= now then return {'LATE'} end",
        "",
        "a call for a caller that has given up",
    ),
    Mutant(
        "an attempt begins again",
        ("begin",),
        "if m[3] == attempt then return {'OK'} end",
        "",
        "two beginnings after a lost reply",
    ),
    Mutant(
        "a begin without owner check",
        ("begin",),
        "if m[2] ~= ARGV[2] then return {'FENCED'} end",
        "",
        "a lost worker's beginning within the next attempt",
    ),
    Mutant(
        "an append before the beginning",
        ("append", "finish"),
        "if a and a ~= string.match(own, '^(%d+)') then return {'LOST'} end",
        "",
        "a text without its beginning",
    ),
    Mutant(
        "a begun attempt is deferred",
        ("defer",),
        "or m[3] == attempt ",
        "",
        "a text that is continued without a reset",
    ),
    Mutant(
        "a claim is deferred without owner check",
        ("defer",),
        "m[2] ~= ARGV[2] or ",
        "",
        "two calls at once after a lost lease",
    ),
    Mutant(
        "an expiry ends a claimed generation",
        ("expire",),
        "or m[2] ~= '' ",
        "",
        "a call under way that is cut by the deadline of its waiting",
    ),
    Mutant(
        "an expiry ignores the deadline",
        ("expire",),
        "if tonumber(m[3]) > math.max(now, tonumber(ARGV[3])) then return {'NO'} end",
        "",
        "a failure before its time",
    ),
    Mutant(
        "a claimed generation is told to wait",
        ("note",),
        "or m[2] ~= '' ",
        "",
        "a reason of waiting for a call under way",
    ),
    Mutant(
        "a reason is told twice",
        ("note",),
        " or known == ARGV[2]",
        "",
        "a log that grows while nothing changes",
    ),
]
"""Mutants that few schedules detect, so each has its own check."""


@contextmanager
def mutated(mutant: Mutant) -> Iterator[None]:
    """Run all scripts without the guard inside the block."""
    changed: list[tuple[Script, str, str]] = []
    for script in _scripts():
        if script.name in mutant.scripts and mutant.guard in script.source:
            changed.append((script, script.source, script.sha))
            script.source = script.source.replace(mutant.guard, mutant.replacement)
            script.sha = hashlib.sha1(script.source.encode(), usedforsecurity=False).hexdigest()
    assert {script.name for script, _, _ in changed} == set(mutant.scripts), (
        f"{mutant.name}: the guard is not in the script"
    )
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
