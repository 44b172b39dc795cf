"""The result of a chaos run: a table, and the violations of invariants."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.chaos.load import Followed
from tests.chaos.world import MAX_ATTEMPTS, World
from tests.faults.oracle import ENDINGS, Wrong
from worker.hand_back import POISON

INVARIANTS: tuple[Wrong, ...] = ("gap", "duplicate", "mixed", "hang", "ending", "refused", "malformed")

NAMES = {
    "gap": "gaps",
    "duplicate": "duplicates",
    "mixed": "mixed texts",
    "hang": "hangs",
    "ending": "wrong endings",
    "refused": "refusals",
    "malformed": "malformed",
    "doubled": "doubled calls",
    "left": "places and tickets left",
    "process": "process errors",
}


@dataclass
class Verdict:
    """`complaints` is empty after a run without violations; `rows` are the table."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    wrong: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.rows)
        table = "\n".join(f"{name:<{width}}  {value}" for name, value in self.rows)
        return table + "".join(f"\n  ! {complaint}" for complaint in self.complaints[:40])


def judge(world: World, followed: list[Followed]) -> Verdict:
    verdict = Verdict()
    claims = world.claims()
    for generation in followed:
        claimed = claims[generation.said.gid] if generation.said else 0
        _judge(generation, claimed, world.losses, verdict)
    for complaint in world.complaints():
        verdict.wrong["process"] += 1
        verdict.complaints.append(complaint)
    for what, number in world.left.items():
        if number:
            verdict.wrong["left"] += 1
            verdict.complaints.append(f"left: {number} {what} after every generation has ended")
    _tabulate(world, followed, verdict)
    return verdict


def _judge(generation: Followed, claims: int, losses: int, verdict: Verdict) -> None:
    def complain(wrong: str, about: str) -> None:
        verdict.wrong[wrong] += 1
        verdict.complaints.append(f"{wrong}: {generation.label}: {about}")

    for complaint in generation.complaints:
        complain("refused", complaint)
    if generation.said is None:
        complain("hang", "was never accepted")
        return
    may_be_lost = losses > generation.losses_before
    for reader in generation.readers:
        for wrong, about in reader.shown.complaints:
            complain(wrong, about)
        if reader.shown.ending is None:
            complain(
                "hang", f"a reader has no ending (at {reader.shown.cursor}, after {reader.connections} connections)"
            )
    endings = {str(reader.shown.ending) for reader in generation.readers} & (ENDINGS | {"nothing"})
    allowed = allowed_endings(generation, claims, may_be_lost=may_be_lost)
    if endings - allowed:
        complain("ending", f"{sorted(endings)}, only {sorted(allowed)} allowed; errors {errors_of(generation)}")
    if len(endings - {"gone"}) > 1 and not may_be_lost:
        complain("ending", f"readers have different endings: {sorted(endings)}")
    _judge_stored(generation, claims, endings, may_be_lost=may_be_lost, complain=complain)


def allowed_endings(generation: Followed, claims: int, *, may_be_lost: bool) -> set[str]:
    """The endings allowed by the upstream's reply and by the requests for the generation. `claims`: how often a worker
    took it; a worker that dies before the upstream accepts the call uses up a claim without an attempt."""
    allowed = {"failed"} if generation.poison or generation.request.fails else {"completed"}
    if claims >= MAX_ATTEMPTS and errors_of(generation) == {"attempts_exhausted"}:
        allowed.add("failed")  # every worker that ran it was killed
    if generation.calls >= POISON and errors_of(generation) == {"upstream_error"}:
        allowed.add("failed")  # its calls met all the outages, between calls of others that were accepted
    if generation.cancelled:
        allowed.add("cancelled")
    if generation.deleted or may_be_lost:
        allowed.add("gone")
    return allowed


def errors_of(generation: Followed) -> set[str | None]:
    """The error codes that its readers received."""
    return {reader.shown.error for reader in generation.readers if reader.shown.ending == "failed"}


def _judge_stored(generation: Followed, claims: int, endings: set[str], *, may_be_lost: bool, complain: object) -> None:
    assert callable(complain)
    stored = generation.stored
    if stored is None:
        if not generation.deleted and not may_be_lost:
            complain("ending", "no longer exists, but was not deleted")
        return
    if stored["status"] not in ENDINGS:
        complain("hang", f"is still {stored['status']}, readers have {sorted(endings)}")
    elif endings - {"gone", stored["status"]} and not may_be_lost:
        complain("ending", f"stored as {stored['status']}, readers have {sorted(endings)}")
    if stored["status"] == "completed" and generation.said and stored["text"] != generation.said.text:
        complain("gap", "the stored text differs from the upstream's")
    faultless = not generation.request.upstream.count("fault=")
    if faultless and not may_be_lost and generation.calls > claims:
        complain("doubled", f"{generation.calls} upstream calls in {claims} claims")


def _tabulate(world: World, followed: list[Followed], verdict: Verdict) -> None:
    shown = [reader.shown for generation in followed for reader in generation.readers]
    subscribers = [subscriber for generation in followed for subscriber in generation.subscribers]
    readers = [reader for generation in followed for reader in generation.readers]
    statuses = Counter((generation.stored or {"status": "gone"})["status"] for generation in followed)
    attempts = sum((generation.stored or {}).get("attempt", 0) for generation in followed)
    row = verdict.rows.append
    row(("generations", f"{len(followed):,}: " + ", ".join(f"{n:,} {name}" for name, n in statuses.most_common())))
    row(("attempts", f"{attempts:,}, upstream calls {sum(generation.calls for generation in followed):,}"))
    row(("faults", f"{world.done.total():,}: " + ", ".join(f"{n} {kind}" for kind, n in sorted(world.done.items()))))
    kills = sum(n for kind, n in world.done.items() if kind.startswith("kill") or kind == "empty-redis")
    row(("kills (-9)", f"{kills:,}"))
    row(("subscribers", f"{len(readers):,}, {len(readers) - len(subscribers):,} of them in the OpenAI dialect"))
    counts = world.counts
    refused = f"{counts['refused']:,}, {counts['unavailable']:,} more in outages"
    row(("refused calls", f"{refused}; at most {counts['max_in_flight']} in flight"))
    reconnects = sum(max(reader.connections - 1, 0) for reader in readers)
    row(("reconnects", f"{reconnects:,}, {sum(reader.cut for reader in readers):,} of them after a broken response"))
    row(("resets announced", f"{sum(subscriber.shown.resets for subscriber in subscribers):,}"))
    row(("bytes compared", f"{sum(one.bytes for one in shown):,}"))
    for wrong, name in NAMES.items():
        row((name, f"{verdict.wrong[wrong]}"))
