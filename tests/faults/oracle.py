"""Checks what a subscriber displays, which is computed from the received bytes according to the public interface alone.

It knows ids, `reset`, `gap`, terminal events and the text that the simulated upstream generates for a seed; it knows
nothing of the broker's code. Each subscriber of a fault test feeds one oracle, and a run succeeds if none has a
complaint.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from tests.support import Frame
from worker.simulator.text import pieces

Wrong = Literal["gap", "duplicate", "mixed", "ending", "refused", "malformed", "hang"]

TERMINAL = frozenset({"completed", "failed", "cancelled"})
ENDINGS = TERMINAL | {"gone"}
KNOWN = ENDINGS | {"created", "started", "reset", "waiting", "chunk", "gap"}


@dataclass(frozen=True)
class Said:
    """A generation and the text that its upstream generates."""

    gid: str
    seed: int
    length: int
    unicode: bool = False

    @cached_property
    def text(self) -> str:
        return "".join(pieces(self.seed, self.length, unicode=self.unicode))


@dataclass
class Shown:
    """Call `take` with every frame of all connections; `complaints` stays empty while every promise is kept."""

    said: Said
    complaints: list[tuple[Wrong, str]] = field(default_factory=list)
    text: str = ""
    ending: str | None = None
    error: str | None = None
    """The error code of a `failed` event."""
    attempt: int = 0
    """As counted in the events, from 1."""
    resets: int = 0
    gaps: int = 0
    """Number of announced gaps."""
    bytes: int = 0
    """Bytes of text that were compared with the upstream's."""
    _at: tuple[int, int] = (0, 0)
    _call: str | None = None

    @property
    def cursor(self) -> str | None:
        """The value that an EventSource would send as Last-Event-ID."""
        return None if self._at == (0, 0) else "{}-{}".format(*self._at)

    def complain(self, wrong: Wrong, about: str) -> None:
        self.complaints.append((wrong, f"{self.said.gid} at {self._at}: {about}"))

    def take(self, frame: Frame) -> None:
        if frame.data is None:
            return
        if self.ending:
            self.complain("ending", f"{frame.event} {frame.id} after {self.ending}")
        if frame.event == "gone" and frame.id is None:
            self.ending = "gone"  # the generation's events and their ids no longer exist
        elif frame.event not in KNOWN or frame.id is None:
            self.complain("malformed", repr(frame.raw[:200]))
        elif self._moves_on(frame.event, frame.id):
            self._show(frame.event, frame.json)

    def _moves_on(self, event: str, cursor: str) -> bool:
        """Whether the event may follow those already shown. Ids are dense; a new attempt begins at 0."""
        attempt, seq = map(int, cursor.split("-"))
        before, self._at = self._at, (attempt, seq)
        if event == "reset" and (attempt, seq) == (0, 0):
            return True  # the gateway discards the text on the client's behalf and sends all of it again
        if event in {"gap", "gone"}:
            return True  # these events announce the missing part themselves
        if attempt == before[0]:
            if seq <= before[1]:
                self._at = before
                self.complain("duplicate", f"{event} {cursor} again")
                return False
            if seq != before[1] + 1:
                self.complain("gap", f"{event} {cursor} without its predecessor")
        elif attempt < before[0]:
            self.complain("mixed", f"{event} {cursor} of an older attempt")
            return False
        elif seq != 0:
            self.complain("gap", f"{event} {cursor} without the beginning of its attempt")
        elif event not in {"started", "reset", *ENDINGS}:
            self.complain("malformed", f"an attempt begins with {event}")
        return True

    def _show(self, event: str, data: dict[str, Any]) -> None:
        if event in {"started", "reset"}:
            if event == "started" and self.text:
                self.complain("mixed", "a new attempt that no reset announced")
            self.resets += event == "reset"
            self.text, self._call = "", None
            self.attempt = data["attempt"]
        elif event == "gap":
            self.gaps += 1
            at = data["earliest"].split("-")
            self._at = (int(at[0]), int(at[1]) - 1)
        elif event == "chunk":
            self._append(data)
        elif event in ENDINGS:
            self._end(event, data)

    def _append(self, chunk: dict[str, Any]) -> None:
        # The simulated upstream gives the chunks of each call an id of their own, because two calls with one seed
        # generate the same text.
        call = chunk.get("id") or self._call  # Azure's first chunk has an empty id
        if self._call is not None and call != self._call:
            self.complain("mixed", f"chunks of two upstream calls, {self._call} and {call}")
        self._call = call
        added = content_of(chunk)
        if not self.gaps and not self.said.text.startswith(added, len(self.text)):
            self.complain("mixed", f"{added!r} differs from the upstream's text")
        self.text += added
        self.bytes += len(added.encode(errors="surrogatepass"))

    def _end(self, event: str, data: dict[str, Any]) -> None:
        self.ending = event
        if event == "failed":
            self.error = data["error"]["code"]
        if event == "completed" and not self.gaps and self.text != self.said.text:
            self.complain("gap", f"completed with {len(self.text)} of {len(self.said.text)} characters")


@dataclass
class ShownCompletion:
    """The same for the OpenAI dialect. Its client cannot be told to discard text: an error frame ends its stream."""

    said: Said
    complaints: list[tuple[Wrong, str]] = field(default_factory=list)
    text: str = ""
    ending: str | None = None
    error: str | None = None
    """The code of the last error frame."""
    bytes: int = 0
    _at: tuple[int, int] = (0, 0)
    _call: str | None = None

    @property
    def cursor(self) -> str | None:
        return None if self._at == (0, 0) else "{}-{}".format(*self._at)

    def complain(self, wrong: Wrong, about: str) -> None:
        self.complaints.append((wrong, f"{self.said.gid} at {self._at}, OpenAI dialect: {about}"))

    def forget(self) -> None:
        """Begin again, as a client does after `generation_reset`."""
        self.text, self.error, self._at, self._call = "", None, (0, 0), None

    def take(self, frame: Frame) -> None:
        if frame.data is None:
            return
        if self.ending:
            self.complain("ending", f"{frame.data[:80]} after {self.ending}")
        if frame.data == "[DONE]":
            if self.error is None:
                self.ending = "completed"
                if self.text != self.said.text:
                    self.complain("gap", f"[DONE] with {len(self.text)} of {len(self.said.text)} characters")
        elif "error" in (data := json.loads(frame.data)):
            self.error = data["error"]["code"]
        else:
            self._chunk(frame, data)

    def _chunk(self, frame: Frame, data: dict[str, Any]) -> None:
        if frame.id is None:
            self.complain("malformed", "a data frame without an id")
            return
        attempt, seq = map(int, frame.id.split("-"))
        if self._at != (0, 0) and attempt != self._at[0]:
            self.complain("mixed", f"{frame.id} of another attempt")
        elif (attempt, seq) <= self._at:
            self.complain("duplicate", f"{frame.id} again")
        self._at = (attempt, seq)
        call = data.get("id") or self._call
        if self._call is not None and call != self._call:
            self.complain("mixed", f"chunks of two upstream calls, {self._call} and {call}")
        self._call = call
        added = content_of(data)
        if not self.said.text.startswith(added, len(self.text)):
            self.complain("mixed", f"{added!r} differs from the upstream's text")
        self.text += added
        self.bytes += len(added.encode(errors="surrogatepass"))


def content_of(chunk: dict[str, Any]) -> str:
    """The content of choice 0."""
    return "".join(
        (choice.get("delta") or {}).get("content") or ""
        for choice in chunk.get("choices") or ()
        if choice.get("index") == 0
    )
