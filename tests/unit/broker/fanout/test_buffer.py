"""The shared frame buffer: in any order of appends, backfills, evictions and reads, a reader gets exactly the frames
after its position."""

from __future__ import annotations

from itertools import takewhile

from hypothesis import given
from hypothesis import strategies as st

from api.dialects.native.frames import NATIVE
from broker.events import CHUNK, COMPLETED, CREATED, RESET, STARTED, Event
from broker.fanout import buffer as segments
from broker.fanout.buffer import FrameBuffer, Segment
from broker.ids import START, Cursor


def log_of(attempts: list[int]) -> list[Event]:
    """A log with the given numbers of chunks, one for each attempt, and a terminal event."""
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
    """Reads a buffer to its end and fills holes from the log as the hub does, in pages of `page` events."""

    def __init__(self, buffer: FrameBuffer, log: list[Event], page: int) -> None:
        self.buffer = buffer
        self.log = log
        self.page = page
        self.loads = 0

    def read(self, position: Cursor, tail: Cursor) -> bytes:
        received = b""
        while position < tail:
            part = self.buffer.slice(position)
            if part is None:
                following = [event for event in self.log if event.cursor > position][: self.page]
                self.buffer.insert(position, following)
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
def test_every_reader_gets_exactly_the_events_after_its_position(
    attempts: list[int], live_from: int, page: int, room: int, data: st.DataObject
) -> None:
    """Live events are appended, older ones are read in pages, segments are evicted at random in between."""
    kept: dict[Segment, None] = {}
    buffer = FrameBuffer(NATIVE, lambda _, segment: kept.update({segment: None}))
    original, segments.SEGMENT_BYTES = segments.SEGMENT_BYTES, room
    try:
        log = log_of(attempts)
        live_from = min(live_from, len(log) - 1)
        reader = Reader(buffer, log[:live_from], page)
        live = live_from - 1
        while live < len(log) - 1:
            # The events of one read, all of one attempt, as a feed passes them on. A page may already contain more.
            batch = [log[live + 1]]
            if batch[0].type == CHUNK:
                most = data.draw(st.integers(1, 8))
                rest = log[live + 2 : live + 1 + most]
                batch += takewhile(lambda event: event.type == CHUNK, rest)
            buffer.extend(log[live].cursor if live >= 0 else START, batch)
            live += len(batch)
            reader.log = log[: live + 1 + data.draw(st.sampled_from([0, 0, 3, 12]))]
            action = data.draw(st.sampled_from(["nothing", "read", "evict"]))
            if action == "read":
                at = data.draw(st.integers(0, live))
                starts = [log[at].cursor]
                if log[at].cursor.seq == 0:
                    starts.append(Cursor(log[at].cursor.attempt, -1))  # right before an attempt
                for position in starts:
                    following = [event for event in log if event.cursor > position]
                    received = reader.read(position, log[live].cursor)
                    assert framed(following).startswith(received)
                    assert len(received) >= len(
                        framed([event for event in following if event.cursor <= log[live].cursor])
                    )
            elif action == "evict" and kept:
                victim = data.draw(st.sampled_from(list(kept)))
                del kept[victim]
                buffer.evict(victim)
        reader.log = log
        assert reader.read(START, log[-1].cursor) == framed(log)
    finally:
        segments.SEGMENT_BYTES = original


def test_a_page_ahead_of_the_live_reader_leaves_no_hole() -> None:
    """A read returns some known and some new events. The new ones follow the known ones, not the older segment."""
    buffer = FrameBuffer(NATIVE, lambda *_: None)
    log = log_of([9])
    buffer.extend(START, log[:1])
    buffer.extend(log[0].cursor, log[1:2])
    buffer.insert(log[3].cursor, log[4:6])
    buffer.extend(log[3].cursor, log[4:9])
    assert Reader(buffer, log, page=2).read(log[3].cursor, log[8].cursor) == framed(log[4:9])
    assert Reader(buffer, log, page=2).read(START, log[8].cursor) == framed(log[:9])


def test_a_whole_sealed_segment_is_read_without_a_copy() -> None:
    buffer = FrameBuffer(NATIVE, lambda *_: None)
    buffer.insert(START, log_of([5]))
    segment = buffer.segments[-1]
    part = buffer.slice(segment.start)
    assert part is not None
    assert part.data is segment.data


def test_readers_at_the_same_position_share_one_slice() -> None:
    buffer = FrameBuffer(NATIVE, lambda *_: None)
    log = log_of([5])
    buffer.insert(START, log)
    assert buffer.slice(START) is buffer.slice(START)


def test_a_slice_never_crosses_attempts() -> None:
    """A dialect can therefore stop a reader exactly at the beginning of another attempt."""
    buffer = FrameBuffer(NATIVE, lambda *_: None)
    log = log_of([2, 2])
    buffer.insert(START, log)
    ends, opens, position = [], [], START
    while position < log[-1].cursor:
        part = buffer.slice(position)
        assert part is not None
        position = part.end
        ends.append(part.end)
        opens.append(part.opens != b"")
    assert ends == [Cursor(0, 1), Cursor(1000, 2), Cursor(2000, 3)]
    assert opens == [False, True, True]


def test_history_is_read_once_for_all_readers() -> None:
    buffer = FrameBuffer(NATIVE, lambda *_: None)
    log = log_of([40])
    first = Reader(buffer, log, page=10)
    assert first.read(START, log[-1].cursor) == framed(log)
    second = Reader(buffer, log, page=10)
    assert second.read(START, log[-1].cursor) == framed(log)
    assert (first.loads, second.loads) == (5, 0)
