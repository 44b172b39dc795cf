"""The event streams of a gateway, without I/O: their requests, and the events in their frames."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Protocol, cast
from urllib.parse import quote

from tokencast_client.operations import Params
from tokencast_client.records import TERMINAL_EVENTS, Event, Json
from tokencast_client.streams.sse import Frame


class Feed(Protocol):
    """A stream that is read over several connections. `ended` is set by its last event."""

    path: str
    always: Params
    """Query parameters of all requests."""
    first: Params
    """Query parameters until an id has been received."""
    ended: bool

    def event(self, frame: Frame) -> Event | None:
        """Return the event of a frame; None if it has none, or was delivered by the previous connection."""
        ...


class GenerationFeed:
    """The events of one generation."""

    def __init__(self, gid: str, after: str | None, speed: float | None = None) -> None:
        self.path = f"/v1/generations/{quote(gid, safe='')}/events"
        self.always: Params = (("speed", f"{speed:g}"),) if speed is not None else ()
        self.first: Params = (("after", after),) if after else ()
        self.ended = False
        self._gid = gid

    def event(self, frame: Frame) -> Event | None:
        if not frame.data:
            return None
        self.ended = frame.event in TERMINAL_EVENTS
        return Event(frame.id, frame.event, frame.data, self._gid)


class ManyFeed:
    """The events of several generations on one connection, until all have ended."""

    path = "/v1/events"
    first: Params = ()

    def __init__(self, names: Iterable[str]) -> None:
        """A name is `ID` or `ID@CURSOR`."""
        self.always = tuple(("generation", name) for name in names)
        self._cursors: dict[str, tuple[int, ...]] = {}
        self._running = {name.partition("@")[0] for _, name in self.always}
        self.ended = not self._running

    def event(self, frame: Frame) -> Event | None:
        if not frame.data:
            return None
        wrapped, name = cast(Json, json.loads(frame.data)), frame.event
        gid, cursor = str(wrapped["generation"]), str(wrapped["cursor"])
        place = tuple(map(int, cursor.split("-")))
        again = place <= self._cursors.get(gid, (0, 0)) and name not in ("reset", "gap", "gone")
        if again or gid not in self._running:
            return None  # already delivered by the previous connection, after its last id
        self._cursors[gid] = place
        if name in TERMINAL_EVENTS:
            self._running.discard(gid)
            self.ended = not self._running
        return Event(cursor, name, json.dumps(wrapped["data"], ensure_ascii=False), gid)


class ActivityFeed:
    """The lifecycle of all generations, without end."""

    path = "/v1/activity"

    def __init__(self, after: str | None, group: str | None, tenant: str | None, *, opening: bool) -> None:
        named = (("group", group), ("tenant", tenant))
        self.always: Params = tuple((name, value) for name, value in named if value)
        self.first: Params = (("after", after),) if after else ()
        self.ended = False
        self._opening = opening

    def event(self, frame: Frame) -> Event | None:
        if not frame.data and not self._opening:
            return None
        data: object = json.loads(frame.data) if frame.data else None
        gid = str(cast(Json, data).get("id") or "") if isinstance(data, dict) else ""
        return Event(frame.id, frame.event, frame.data, gid)
