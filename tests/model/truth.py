"""The invariants of a generation in the log, checked after each step."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from tests.model.oracle import Piece, Violation, pieces
from tests.model.processes import Run
from tests.model.storage import Stored

FIRST = {"st", "rs", "f", "x"}
LATER = {"c", "u", "w", "ok", "f"}
TERMINAL = {"ok": "completed", "f": "failed", "x": "cancelled"}
MAX_ATTEMPTS = 3
KNOWN_FAILURES = {
    *("upstream_truncated", "attempts_exhausted", "queue_timeout", "upstream_rate_limited", "upstream_error"),
}


def check(condition: object, what: str) -> None:
    if not condition:
        raise Violation(what)


@dataclass
class Truth:
    """The model's knowledge of one generation, and its last observed state."""

    gid: str
    restarts: bool
    key: str | None = None
    """Its idempotency key."""
    seen: Stored | None = None
    lost: bool = False
    """Redis lost the generation or its tail: a worker may put it back."""
    trimmed: bool = False
    deleted: bool = False
    """It was deleted at some time. A follower that got `gone` is right, even if Redis lost the deletion since."""
    era: int = 0
    """The number of acknowledged endings that Redis lost. Followers of one era see the same ending."""
    endings: dict[tuple[str, str], int] = field(default_factory=dict)
    runs: dict[int, Run] = field(default_factory=dict)
    """The upstream runs by attempt."""

    @property
    def ending(self) -> tuple[str, str] | None:
        """Name and data of the ending event in the log."""
        if self.seen is None or not self.seen.ended or not self.seen.log:
            return None
        _, _, kind, data = self.seen.log[-1]
        return TERMINAL[kind], data.decode()

    @property
    def missing(self) -> bool:
        """Whether nothing can be read: unknown, deleted or expired."""
        return self.seen is None or self.seen.status in (None, "deleted") or not self.seen.log

    def look(self, now: Stored, op: str, releases: int) -> None:
        """Check that the state after `op` is well formed and a valid successor of the previous state."""
        self.well_formed(now, releases)
        before, self.seen = self.seen, now
        if op in ("fail_over", "lose"):
            self.lost = True
            ended = before is not None and (before.ended or before.status == "deleted")
            if ended and (before.status, self._end(before)) != (now.status, self._end(now)):
                self.forget_ending()
        elif before is None or before.status is None:
            self._may_appear(now, op)
        else:
            self._may_follow(before, now, op)

    def forget_ending(self) -> None:
        self.era += 1
        self.endings.clear()

    @staticmethod
    def _end(seen: Stored) -> object:
        return seen.log[-1] if seen.ended and seen.log else None

    def _may_appear(self, now: Stored, op: str) -> None:
        check(now.status is None or op == "create" or self.lost, f"resurrected: {now.status}")

    def _may_follow(self, before: Stored, now: Stored, op: str) -> None:
        if now.status is None:
            check(op == "elapse", "the generation disappeared")
        elif before.status == "deleted":
            check(now.status == "deleted", f"resurrected after its deletion: {now.status}")
        elif now.status == "deleted":
            check(op == "delete", "deleted without a request")
            self.deleted = True
        elif before.ended:
            check(now.status == before.status, f"a second ending: {before.status}, then {now.status}")
            check(now.log == before.log or op in ("trim", "elapse"), "something was written after the end")
            check(now.top == before.top, "the cursor of an ended generation moved")
        else:
            check(now.top >= before.top, f"the log went back: {before.top}, {now.top}")
            check(now.log[: len(before.log)] == before.log or op in ("trim", "elapse"), "the log was rewritten")
            for counter in ("k", "x"):
                check(int(now.meta[counter]) >= int(before.meta[counter]), f"{counter} went back")

    # --- form -------------------------------------------------------------------------------------------------

    def well_formed(self, now: Stored, releases: int) -> None:
        if now.status is None:
            check(not now.log, "a log without a generation")
        elif now.status == "deleted":
            check([entry[2] for entry in now.log] in ([], ["g"]), "a deleted generation has a log")
            check(not now.listed and now.due is None, "a deleted generation is listed")
        else:
            self._indexed(now)
            self._budget(now, releases)
            self._dense(now)
            self._ends_once(now)
            self._one_text_per_attempt(now)

    @staticmethod
    def _indexed(now: Stored) -> None:
        status, own = now.status, now.meta.get("own")
        check(now.listed == {"", status}, f"{status}, but listed as {now.listed}")
        alive = status in ("queued", "in_progress")
        check((now.due is not None) == alive, f"{status}, but due {now.due}")
        if status == "in_progress":
            newest = max(int(now.meta["a"]), int(now.meta.get("na") or 0))  # claimed again after an upstream error
            check((own or "").startswith((f"{now.meta['a']}.", f"{newest}.")), f"in_progress, but owned by {own!r}")
            check(int(now.meta["le"]) != 0, "in progress without a lease")
        elif status == "queued" and own:
            check(own.startswith(f"{now.meta['na']}."), f"claimed by {own!r}, but the newest is {now.meta['na']}")
            check(int(now.meta["na"]) > int(now.meta["a"]), f"queued, but {now.meta['a']} of {own} has begun")
            check(int(now.meta["le"]) != 0, "claimed without a lease")
        else:
            check(own == "", f"{status}, but owned by {own!r}")

    @staticmethod
    def _budget(now: Stored, releases: int) -> None:
        k, x = int(now.meta["k"]), int(now.meta["x"])
        check(x < MAX_ATTEMPTS or now.ended, f"{x} crashes, and still {now.status}")
        check(k <= x + releases + 1, f"attempt {k} after {x} crashes and {releases} hand-overs")

    def _dense(self, now: Stored) -> None:
        if not now.log:
            check(now.ended, "no log")
            return
        previous: tuple[int, int] | None = None
        for attempt, seq, kind, _ in now.log:
            if previous is None:
                check(self.trimmed or (attempt, seq) == (0, 1), f"the log begins with {attempt}-{seq}")
            elif attempt == previous[0]:
                check(seq == previous[1] + 1, f"{attempt}-{seq} after {previous}")
            else:
                check(attempt > previous[0] and seq == 0, f"{attempt}-{seq} after {previous}")
            if attempt:
                check(kind in (FIRST if seq == 0 else LATER), f"{kind} at {attempt}-{seq}")
            else:
                check(kind == ("cr" if seq == 1 else "w"), f"{kind} at {attempt}-{seq}")
            previous = (attempt, seq)
        check(previous == now.top, f"the log ends at {previous}, the metadata at {now.top}")

    @staticmethod
    def _ends_once(now: Stored) -> None:
        ends = [i for i, entry in enumerate(now.log) if entry[2] in TERMINAL]
        check(len(ends) <= 1, "two endings")
        check(not ends or ends[0] == len(now.log) - 1, "events after the ending")
        if now.log:
            check(bool(ends) == now.ended, f"{now.status}, with {len(ends)} endings")
        if ends:
            _, seq, kind, data = now.log[-1]
            check(TERMINAL[kind] == now.status, f"{now.status}, but the event says {TERMINAL[kind]}")
            if kind == "f":
                code = json.loads(data)["error"]["code"]
                check(code in KNOWN_FAILURES, f"failed with {code}")
            check(seq > 0 or kind != "ok", "completed without an attempt")

    def _one_text_per_attempt(self, now: Stored) -> None:
        found: dict[int, list[Piece]] = {}
        for attempt, _, kind, data in now.log:
            if kind == "c":
                found.setdefault(attempt, []).extend(_content(data))
        for attempt, sent in found.items():
            check(attempt in self.runs, f"a text in attempt {attempt}, which was not claimed")
            number = self.runs[attempt].number
            first = sent[0][1] if self.trimmed else 0
            check(sent == [(number, first + i) for i in range(len(sent))], f"attempt {attempt} has {sent}")
        if now.status == "completed" and now.log and not self.trimmed:
            self.is_whole(found.get(now.log[-1][0], []), now.log[-1][0])

    def is_whole(self, sent: list[Piece], attempt: int) -> None:
        """Check that a completed generation has the whole text of the upstream."""
        run = self.runs[attempt]
        check(sent == [(run.number, i) for i in range(run.sent)], f"completed with {sent} of {run.sent}")


def _content(data: bytes) -> list[Piece]:
    return [piece for choice in json.loads(data)["choices"] for piece in pieces(choice["delta"].get("content") or "")]
