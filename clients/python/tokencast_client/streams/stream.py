"""A stream of events over as many connections as it needs: the state machine of both clients, without I/O.

while not stream.ended:
    send stream.request()
    stream.opened(status, headers)     → whether the body is read
    stream.receive(data)               → events, for each piece of the body, until stream.leaves
    stream.lost(error, silent=…)       if the connection broke
    sleep stream.delay()
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tokencast_client.errors import UnexpectedResponse, Unreachable, seconds
from tokencast_client.operations import Params
from tokencast_client.reconnect import TRY_LATER, ReconnectDelay
from tokencast_client.records import Event
from tokencast_client.streams.feeds import Feed
from tokencast_client.streams.sse import Decoder

READ_TIMEOUT = 60.0
"""Seconds; a gateway sends a comment every 15, so the connection is dead by then."""
_SHORTEST_READ = 0.05
"""Seconds, the precision of a deadline."""


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """A request for the rest of a stream. `read_timeout`: seconds without any data."""

    path: str
    params: Params
    headers: Mapping[str, str]
    read_timeout: float


class Stream:
    """The state of one stream: the position, the delays, the deadline."""

    def __init__(
        self,
        feed: Feed,
        url: str,
        *,
        attempts: int,
        timeout: float | None = None,
        on_disconnect: Callable[[str], object] | None = None,
    ) -> None:
        """`attempts`: failures that are survived before the first response. `timeout`: seconds after which it ends."""
        self._feed = feed
        self._url = url
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._delay = ReconnectDelay(url, attempts, on_disconnect)
        self._last_id = ""
        self._began = ""  # last id when the connection was made
        self._over = False
        self._failed = False
        self._was_open = False
        self._read_timeout = READ_TIMEOUT
        self._decoder = Decoder()

    @property
    def expired(self) -> bool:
        """Whether the stream has ended because of its deadline."""
        return not self._feed.ended and not self._over and self._left() <= 0

    @property
    def ended(self) -> bool:
        return self._feed.ended or self._over or self._left() <= 0

    @property
    def leaves(self) -> bool:
        """Whether to close the connection: the stream has ended, or a silence could outlast the deadline."""
        return self.ended or (self._deadline is not None and self._left() < self._read_timeout)

    def request(self) -> StreamRequest:
        """Return the next request. With a deadline its read timeout is half of what is left, so that the reader can
        leave in time whatever the gateway sends."""
        self._began, self._decoder = self._last_id, Decoder()
        self._failed = self._was_open = False
        self._read_timeout = min(READ_TIMEOUT, max(self._left() / 2, _SHORTEST_READ))
        resume = {"last-event-id": self._last_id} if self._last_id else {}
        params = self._feed.always if self._last_id else (*self._feed.always, *self._feed.first)
        headers = {"accept": "text/event-stream", "cache-control": "no-store", **resume}
        return StreamRequest(self._feed.path, params, headers, self._read_timeout)

    def opened(self, status: int, headers: Mapping[str, str]) -> bool:
        """Process the head of a response with status 200, 204 or one of TRY_LATER; return whether to read its body."""
        self._delay.contact()
        if status in TRY_LATER:
            self._failed = True
            self._delay.ask(seconds(headers.get("retry-after")))
            return False
        self._over = status == 204
        if self._over:
            return False
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "text/event-stream":
            raise UnexpectedResponse(f"The server at {self._url} is not Tokencast.")
        self._was_open = True
        return True

    def receive(self, data: bytes) -> Iterator[Event]:
        """Yield the events that these bytes complete."""
        self._delay.contact()
        for frame in self._decoder.feed(data):
            if frame.retry is not None:
                self._delay.ask(frame.retry / 1000)
            self._last_id = frame.id or self._last_id
            try:
                event = self._feed.event(frame)
            except (ValueError, KeyError, TypeError):
                raise UnexpectedResponse(f"The server at {self._url} sent an event that is not Tokencast's.") from None
            if event is not None:
                yield event
            if self._feed.ended:
                return

    def lost(self, error: Unreachable, *, silent: bool) -> None:
        """Note that the connection broke, or that it was `silent` for longer than the read timeout. Raises the error if
        that is final."""
        if silent and self._read_timeout < READ_TIMEOUT:
            return  # the deadline is near, and the connection may be well
        self._failed = True
        self._delay.lost(error)

    def delay(self) -> float:
        """Return the seconds before the next request. Raises Unreachable if the gateway is gone for too long."""
        if not self._failed and self._left() < self._read_timeout:
            return 0.0  # it was left for the sake of the deadline
        if self._was_open:
            self._delay.contact()  # the reader may have been busy with an event for a long time
        return max(0.0, min(self._delay.next(progress=self._last_id != self._began), self._left()))

    def _left(self) -> float:
        return float("inf") if self._deadline is None else self._deadline - time.monotonic()
