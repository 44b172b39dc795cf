"""Process setup: file limit and garbage collector, exit on invalid configuration, commands that start our modules."""

from __future__ import annotations

import gc
import logging
import sys
from contextlib import suppress
from pathlib import Path

from broker.errors import Misconfigured

MISCONFIGURED = 2  # exit status


def prepare(log: logging.Logger, files: int) -> None:
    """Raise the limit of open files to the hard limit, with a warning if it is less than `files`, and configure the
    garbage collector: exclude imported modules, and run less often.

    Each subscriber is a socket, so the usual soft limit of 1,024 files would limit the number of readers. Each also
    consists of about a hundred long-lived objects: with the default thresholds the collector took a quarter of the
    time while they connect (2,700 a second instead of 3,700), and paused the streams longer the more there were.
    """
    if sys.platform != "win32":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(OSError, ValueError):  # macOS reports a hard limit that it does not grant
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < files:
            log.warning("the limit of open files (ulimit -n) is %d; %d or more is recommended", soft, files)
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def refuse(program: str, error: Misconfigured) -> int:
    """Print on stderr, in one line, why a program cannot start; return its exit status."""
    line = "".join(c if c.isprintable() else " " for c in str(error))
    sys.stderr.write(f"{program}: {line}\n")
    return MISCONFIGURED


def open_files() -> int:
    """Return the limit of open files, including sockets, of this process."""
    if sys.platform == "win32":
        return sys.maxsize
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def python_module(name: str, *arguments: str) -> list[str]:
    """Return the command that runs one of our modules, whatever packages of the same name are on PYTHONPATH or in the
    current directory: see tokencast_broker.py."""
    return [sys.executable, "-P", str(_home() / "tokencast_broker.py"), name, *arguments]


def install_command(extra: str) -> str:
    """Return the command that installs an extra of this distribution, in a checkout or from the package index."""
    checkout = (_home() / "pyproject.toml").is_file()
    return f"pip install -e clients/python -e '.[{extra}]'" if checkout else f"pip install 'tokencast-broker[{extra}]'"


def _home() -> Path:
    """The directory that holds our packages: a checkout or `site-packages`."""
    return Path(__file__).resolve().parents[2]
