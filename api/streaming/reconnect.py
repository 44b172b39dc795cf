"""The `retry:` field of server-sent events: when a reader whose stream was ended reconnects (WHATWG HTML §9.2)."""

from __future__ import annotations

import random

from broker.fanout.dialect import EndReason

LIMIT = "limit"
"""The reason of a stream that was not opened because a limit is reached."""

# Range in ms from which the reconnection time is drawn, by the reason of the end.
_RANGES = {EndReason.DRAINING: (500, 10_000), LIMIT: (2000, 10_000)}
_DEFAULT_RANGE = 1000, 4000


def retry(reason: str, why: object = "") -> bytes:
    """Return a `retry:` field with the time that an EventSource waits before it reconnects. It is random, so that a
    thousand readers do not reconnect at once. `why` is sent as a comment, for people who use curl and for pages that
    parse streams themselves."""
    comment = f": {why}\n" if why else ""
    return f"retry: {random.randint(*_RANGES.get(reason, _DEFAULT_RANGE))}\n{comment}\n".encode()
