"""The `retry:` field of server-sent events: when a reader that was sent away reconnects (WHATWG HTML §9.2)."""

from __future__ import annotations

import random

# Between how many ms an EventSource comes back, by why it was sent away.
_BACK = {"draining": (500, 10_000), "limit": (2000, 10_000)}
_SOON = 1000, 4000


def retry(reason: str, why: object = "") -> bytes:
    """How long an EventSource waits before it reconnects: random, so that a thousand do not come at once. `why` is a
    comment, for who looks: `curl`, and a page that reads streams itself."""
    comment = f": {why}\n" if why else ""
    return f"retry: {random.randint(*_BACK.get(reason, _SOON))}\n{comment}\n".encode()
