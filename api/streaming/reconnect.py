"""The `retry:` field of server-sent events: when a reader whose stream was ended reconnects (WHATWG HTML §9.2)."""

from __future__ import annotations

import random

# Range in ms from which the reconnection time is drawn, by the reason of the end.
_BACK = {"draining": (500, 10_000), "limit": (2000, 10_000)}
_SOON = 1000, 4000


def retry(reason: str, why: object = "") -> bytes:
    """Return a `retry:` field with the time that an EventSource waits before it reconnects. It is random, so that a
    thousand readers do not reconnect at once. `why` is sent as a comment, for people who use curl and for pages that
    parse streams themselves."""
    comment = f": {why}\n" if why else ""
    return f"retry: {random.randint(*_BACK.get(reason, _SOON))}\n{comment}\n".encode()
