"""Frames of the activity stream: each event under its name, with the generation as the list shows it.

id: 1763790000123
event: completed
data: {"id":"gen_…","object":"generation","status":"completed",…}

The id is a time in ms by Redis's clock: everything that happened up to it has been delivered. Several events may share
one.
"""

from __future__ import annotations

import msgspec

from api.dialects.native.frames import NATIVE
from broker.events import Event
from broker.fanout.dialect import EndReason, Stateless
from broker.ids import Cursor


class ActivityFrames(Stateless):
    name = "lifecycle"
    crosses_attempts = True
    heartbeat = NATIVE.heartbeat

    def frame(self, event: Event) -> bytes:
        return b"id: %d\nevent: %b\ndata: %b\n\n" % (event.at_ms, event.type, event.data)

    def gap(self, requested: Cursor, earliest: Cursor, latest: Cursor) -> bytes:
        return b""

    def reset(self) -> bytes:
        return b""

    def end(self, reason: EndReason) -> bytes:
        return NATIVE.end(reason)


LIFECYCLE = ActivityFrames()


def missed(requested: int, earliest: int, latest: int) -> bytes:
    """Return a `gap` event: what happened between `requested` and `earliest` is no longer recorded; list the
    generations again."""
    data = {"requested": str(requested), "earliest": str(earliest), "latest": str(latest)}
    return b"event: gap\ndata: %b\n\n" % msgspec.json.encode(data)
