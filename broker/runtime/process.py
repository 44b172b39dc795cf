"""What every long-running process of ours does to itself first, and how another one is started."""

from __future__ import annotations

import gc
import logging
import sys
from contextlib import suppress
from pathlib import Path

from broker.errors import Misconfigured

MISCONFIGURED = 2  # exit status


def prepare(log: logging.Logger, files: int) -> None:
    """As many sockets as the system lets us have, and a collector that is not at it all the time, nor walks what was
    imported. Says so where the files are fewer than `files`.

    A subscriber is a socket: the usual soft limit of 1,024 files would be the number of readers. And it is some hundred
    objects that live long: with the usual thresholds the collector took a quarter of the time in which they connect
    (2,700 a second instead of 3,700), and stopped the streams for longer the more there were.
    """
    if sys.platform != "win32":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(OSError, ValueError):  # macOS names a hard limit that it does not grant
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < files:
            log.warning("the limit of open files (ulimit -n) is %d; %d or more is recommended", soft, files)
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def refuse(program: str, error: Misconfigured) -> int:
    """Report on stderr, in one line, why a program cannot start; the exit status."""
    line = "".join(c if c.isprintable() else " " for c in str(error))
    sys.stderr.write(f"{program}: {line}\n")
    return MISCONFIGURED


def open_files() -> int:
    """How many files, sockets among them, this process may have open."""
    if sys.platform == "win32":
        return sys.maxsize
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def python_module(name: str, *arguments: str) -> list[str]:
    """The command that runs one of our modules, and not one of that name in the current directory."""
    at_home = Path.cwd() == Path(__file__).resolve().parents[2]
    return [sys.executable, *([] if at_home else ["-P"]), "-m", name, *arguments]
