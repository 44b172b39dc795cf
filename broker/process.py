"""What every long-running process of ours does to itself first, and how another one is started."""

from __future__ import annotations

import gc
import logging
import sys
from contextlib import suppress
from pathlib import Path

import broker
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
            log.warning("only %d files may be open at once (ulimit -n), %d would be good", soft, files)
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
    """The command that runs one of our modules, whatever packages of the same name are on PYTHONPATH or in the current
    directory: see tokencast_broker.py."""
    return [sys.executable, "-P", str(_home() / "tokencast_broker.py"), name, *arguments]


def install_command(extra: str) -> str:
    """The command that installs an extra of this distribution, in a checkout or from the package index."""
    checkout = (_home() / "pyproject.toml").is_file()
    return f"pip install -e '.[{extra}]'" if checkout else f"pip install 'tokencast-broker[{extra}]'"


def _home() -> Path:
    """The directory that holds our packages: a checkout or `site-packages`."""
    return Path(broker.__file__).resolve().parents[1]
