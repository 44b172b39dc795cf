"""Memory feeds: the events that they keep, and the positions at which readers resume."""

from __future__ import annotations

from api.dialects.native.activity_frames import LIFECYCLE
from broker.fanout.activity import OVERLAP, Entry, History, Watched
from broker.fanout.buffer import SEGMENT_BYTES
from broker.fanout.memory_feed import FIRST, MemoryFeed
from broker.ids import Cursor

DATA = b'{"id":"%d","padding":"' + b"x" * 1000 + b'"}'


def read(feed: MemoryFeed, position: Cursor) -> bytes:
    """All data that a subscriber gets from a position."""
    data = b""
    while position < feed.tail:
        part = feed.window.slice(position)
        assert part is not None
        data += part.data
        position = part.end
    assert feed.window.slice(position) is None
    return data


def test_a_reader_gets_all_events_after_any_position() -> None:
    feed = MemoryFeed("", LIFECYCLE, 1 << 20)
    frames = [LIFECYCLE.frame(feed.add(b"created", number, DATA % number)) for number in range(300)]
    for seq in range(-1, 300, 7):
        assert read(feed, Cursor(FIRST.attempt, seq)) == b"".join(frames[seq + 1 :])


def test_a_reader_before_the_window_continues_at_its_beginning() -> None:
    """The kept data has the size of the limit plus the growing segment."""
    limit = 4 * SEGMENT_BYTES
    feed = MemoryFeed("", LIFECYCLE, limit)
    frames = [LIFECYCLE.frame(feed.add(b"created", number, DATA % number)) for number in range(2000)]
    kept = read(feed, FIRST)
    assert b"".join(frames).endswith(kept)
    assert limit - 2 * SEGMENT_BYTES < len(kept) < limit + 2 * SEGMENT_BYTES
    first = feed.window.earliest.seq + 1
    assert kept == b"".join(frames[first:])
    assert read(feed, Cursor(FIRST.attempt, first + 3)) == b"".join(frames[first + 4 :])


async def test_a_resuming_reader_gets_the_events_since_its_position_and_an_overlap() -> None:
    """The time of writing counts, not the id under which an event was sent: while a server lags, that can be lower."""
    history = History(Watched("", None, named=False, history=True), LIFECYCLE)
    for second, read_up_to in ((10, 10), (20, 20), (30, 25), (28, 40), (40, 40)):
        history.append(Entry((second * 1000, 0), f"s{second}", "", b"created", b"{}"), read_up_to * 1000)
    assert history.position_after(0) == FIRST
    assert history.position_after(20_000 + OVERLAP) == Cursor(FIRST.attempt, 1)
    assert history.position_after(25_000 + OVERLAP) == Cursor(FIRST.attempt, 1), "late events are missing"
    assert history.position_after(40_000 + OVERLAP) == Cursor(FIRST.attempt, 4) == history.tail
    ids = [int(line[4:]) for line in read(history, FIRST).decode().splitlines() if line.startswith("id: ")]
    assert ids == [10_000, 20_000, 25_000, 28_000, 40_000]


async def test_an_entry_that_was_loaded_from_the_history_is_not_added_again() -> None:
    history = History(Watched("", None, named=False, history=True), LIFECYCLE)
    history.loaded = {"10": (5000, 1)}
    for at, shard in (((5000, 0), "10"), ((5000, 1), "10"), ((5000, 2), "10"), ((4000, 0), "by")):
        history.append(Entry(at, shard, "", b"created", b"{}"), 6000)
    assert history.tail == Cursor(FIRST.attempt, 1)


async def test_the_history_is_incomplete_before_the_window() -> None:
    history = History(Watched("", None, named=False, history=True), LIFECYCLE)
    for number in range(1, 3001):
        history.append(Entry((number, 0), "10", "", b"created", DATA % number), number)
    assert history.complete_since == history.window.earliest.seq + 1 > 1
    assert history.position_after(0) == history.window.earliest
