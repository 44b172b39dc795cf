"""What every long-running process of ours does to itself first."""

from __future__ import annotations

import gc
import sys
from contextlib import suppress


def prepare() -> None:
    """As many sockets as the system lets us have, and no collector that walks what was imported.

    A subscriber is a socket: the usual soft limit of 1,024 files would be the number of readers.
    """
    if sys.platform != "win32":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(OSError, ValueError):  # macOS names a hard limit that it does not grant
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.freeze()
