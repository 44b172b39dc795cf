"""`GET /v1/activity`: what happens to the caller's generations, for lists and dashboards."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.auth import ReadAccess
from api.dialects.native.activity_frames import LIFECYCLE, missed
from api.query import last_event_id_of, text_of
from api.requests import by_method
from api.streaming.follow import Follow, Start, or_retry_later
from api.streaming.response import HEADERS
from broker.errors import InvalidCursor
from broker.fanout.activity import Activity, History
from broker.fanout.memory_feed import FIRST
from broker.ids import Cursor
from broker.request.options import check_group

_ID = re.compile(r"\d{1,16}", re.ASCII)


class ActivityRoutes:
    """The handler of `/v1/activity`.

    The stream begins with the recorded history, with `?after=latest` at the current moment, or after an id of this
    stream (`Last-Event-ID`, which wins, or `?after=`; an invalid id in the header counts as none). The last two seconds
    before an id are repeated; each event is complete, so it may be processed twice.
    """

    def __init__(self, follow: Follow, activity: Activity) -> None:
        self._follow = follow
        self._activity = activity

    def routes(self) -> list[Route]:
        return [by_method("/v1/activity", GET=self.watch)]

    async def watch(self, request: Request) -> Response:
        access = self._follow.access
        watched, named = access.scope(request), access.names_tenants(request)
        reader = ReadAccess(watched, access.end(request), caller=access.tenant(request))
        last, query, group = last_event_id_of(request), text_of(request, "after"), text_of(request, "group")
        if group is not None:
            check_group(group, "group")
        if not last and query and query != "latest" and not _ID.fullmatch(query):
            raise InvalidCursor("`after` must be an id of this stream, or `latest`.")
        if request.method == "HEAD":
            return Response(headers=HEADERS)
        wanted = last or query or ""

        async def begin(channel: History) -> Start:
            return Start(channel, LIFECYCLE, *_begin(channel, wanted))

        source = self._activity.open(watched, group, history=wanted != "latest", named=named)
        return self._follow.draining or await or_retry_later(self._follow.source(reader, "", source, begin))


def _begin(channel: History, wanted: str) -> tuple[Cursor, bytes]:
    """Return where the reader begins, and the bytes to send first."""
    if wanted == "latest":
        return channel.tail, b"id: %d\n\n" % channel.id
    if not _ID.fullmatch(wanted):
        return FIRST, b""
    resumed = int(wanted)
    lost = resumed < channel.complete_since
    return channel.position_after(resumed), missed(resumed, channel.complete_since, channel.id) if lost else b""
