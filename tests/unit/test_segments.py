"""The shared framed buffer: whatever is appended, read back, evicted and asked for, in any order, a reader gets
exactly the frames behind its position."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from api.dialects.native import NATIVE
from broker import segments
from broker.events import CHUNK, COMPLETED, CREATED, RESET, STARTED, Event
from broker.ids import START, Cursor
from broker.segments import Segment, View


def log_of(attempts: list[int]) -> list[Event]:
    """A log with so many chunks per attempt, and a terminal event."""
    events = [Event(Cursor(0, 1), CREATED, 0, b"{}")]
    for number, chunks in enumerate(attempts, start=1):
        attempt = number * 1000
        events.append(Event(Cursor(attempt, 0), RESET if number > 1 else STARTED, 0, b"{}"))
        events += [Event(Cursor(attempt, seq), CHUNK, seq, b"%d" % seq) for seq in range(1, chunks + 1)]
    last = events[-1].cursor
    events.append(Event(Cursor(last.attempt, last.seq + 1), COMPLETED, 0, b"{}"))
    return events


def framed(events: list[Event]) -> bytes:
    return b"".join(map(NATIVE.frame, events))


class Reader:
    """Reads a view to its end, filling holes from the log as the hub does, in pages of `page` events."""

    def __init__(self, view: View, log: list[Event], page: int) -> None:
        self.view = view
        self.log = log
        self.page = page
        self.loads = 0

    def read(self, position: Cursor, tail: Cursor) -> bytes:
        received = b""
        while position < tail:
            part = self.view.slice(position)
            if part is None:
                behind = [event for event in self.log if event.cursor > position][: self.page]
                self.view.insert(position, behind)
                self.loads += 1
                continue
            assert part.end > position
            received += part.data
            position = part.end
        return received


@given(
    attempts=st.lists(st.integers(0, 30), min_size=1, max_size=4),
    live_from=st.integers(0, 100),
    page=st.integers(1, 9),
    room=st.sampled_from([64, 300, 65536]),
    data=st.data(),
)
def test_any_reader_gets_exactly_what_follows_its_position(
    attempts: list[int], live_from: int, page: int, room: int, data: st.DataObject
) -> None:
    """Live events are appended, older ones are read in pages, segments are evicted at random in between."""
    kept: dict[Segment, None] = {}
    view = View(NATIVE, lambda _, segment: kept.update({segment: None}))
    original, segments.SEGMENT_BYTES = segments.SEGMENT_BYTES, room
    try:
        log = log_of(attempts)
        live_from = min(live_from, len(log) - 1)
        reader = Reader(view, log[:live_from], page)
        for live in range(live_from, len(log)):
            previous = log[live - 1].cursor if live else START
            view.extend(previous, [log[live]])
            reader.log = log[: live + 1]
            action = data.draw(st.sampled_from(["nothing", "read", "evict"]))
            if action == "read":
                at = data.draw(st.integers(0, live))
                starts = [log[at].cursor]
                if log[at].cursor.seq == 0:
                    starts.append(Cursor(log[at].cursor.attempt, -1))  # right before an attempt
                for position in starts:
                    behind = [event for event in reader.log if event.cursor > position]
                    assert reader.read(position, log[live].cursor) == framed(behind)
            elif action == "evict" and kept:
                victim = data.draw(st.sampled_from(list(kept)))
                del kept[victim]
                view.evict(victim)
        assert reader.read(START, log[-1].cursor) == framed(log)
    finally:
        segments.SEGMENT_BYTES = original


def test_readers_at_one_position_share_one_slice() -> None:
    view = View(NATIVE, lambda *_: None)
    log = log_of([5])
    view.insert(START, log)
    assert view.slice(START) is view.slice(START)


def test_a_slice_never_crosses_attempts() -> None:
    """So that a dialect can stop a reader right where another attempt begins."""
    view = View(NATIVE, lambda *_: None)
    log = log_of([2, 2])
    view.insert(START, log)
    ends, opens, position = [], [], START
    while position < log[-1].cursor:
        part = view.slice(position)
        assert part is not None
        position = part.end
        ends.append(part.end)
        opens.append(part.opens != b"")
    assert ends == [Cursor(0, 1), Cursor(1000, 2), Cursor(2000, 3)]
    assert opens == [False, True, True]


def test_history_is_read_once_for_all() -> None:
    view = View(NATIVE, lambda *_: None)
    log = log_of([40])
    first = Reader(view, log, page=10)
    assert first.read(START, log[-1].cursor) == framed(log)
    second = Reader(view, log, page=10)
    assert second.read(START, log[-1].cursor) == framed(log)
    assert (first.loads, second.loads) == (5, 0)
