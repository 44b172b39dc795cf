"""`GET /v1/activity`: what happens to the caller's generations, for lists and dashboards."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.auth import Access
from api.dialects.native.activity_frames import LIFECYCLE, missed
from api.errors import IS_DRAINING
from api.query import last_event_id_of, text_of
from api.requests import by_method
from api.streaming.response import HEADERS, EventStream, RetryLater, retry_later
from broker.broker import Broker
from broker.errors import InvalidCursor, LimitExceeded, StorageUnavailable
from broker.fanout.activity import Activity, History
from broker.fanout.dialect import EndReason
from broker.fanout.memory_feed import FIRST
from broker.ids import Cursor

_ID = re.compile(r"\d{1,16}", re.ASCII)


class ActivityRoutes:
    """The handler of `/v1/activity`.

    The stream begins with the recorded history, with `?after=latest` at the current moment, or after an id of this
    stream (`Last-Event-ID`, which wins, or `?after=`; an invalid id in the header counts as none). The last two seconds
    before an id are repeated; each event is complete, so it may be processed twice.
    """

    def __init__(self, broker: Broker, access: Access, activity: Activity) -> None:
        self._broker = broker
        self._access = access
        self._activity = activity

    def routes(self) -> list[Route]:
        return [by_method("/v1/activity", GET=self.watch)]

    async def watch(self, request: Request) -> Response:
        tenant, hub = self._access.tenant(request), self._broker.hub
        last, query = last_event_id_of(request), text_of(request, "after")
        if not last and query and query != "latest" and not _ID.fullmatch(query):
            raise InvalidCursor("`after` must be an id of this stream, or `latest`.")
        if request.method == "HEAD":
            return Response(headers=HEADERS)
        if hub.draining:
            return RetryLater(EndReason.DRAINING, IS_DRAINING)
        try:
            async with AsyncExitStack() as stack:
                stack.enter_context(self._access.subscribers.one(tenant))
                wanted = last or query or ""
                channel = await stack.enter_async_context(self._activity.open(tenant, history=wanted != "latest"))
                position, preface = _begin(channel, wanted)
                return EventStream(
                    hub,
                    stack.pop_all(),
                    channel,
                    LIFECYCLE,
                    position,
                    preface=preface,
                    send_timeout=self._broker.settings.send_timeout,
                )
        except (StorageUnavailable, LimitExceeded) as error:
            return retry_later(error)
        raise AssertionError("unreachable")


def _begin(channel: History, wanted: str) -> tuple[Cursor, bytes]:
    """Return where the reader begins, and the bytes to send first."""
    if wanted == "latest":
        return channel.tail, b"id: %d\n\n" % channel.id
    if not _ID.fullmatch(wanted):
        return FIRST, b""
    resumed = int(wanted)
    lost = resumed < channel.complete_since
    return channel.position_after(resumed), missed(resumed, channel.complete_since, channel.id) if lost else b""
