"""Shared by the commands: exit codes, the gateway client, JSON output and the examples in `--help`."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import click

from broker.cli.output import harmless
from broker.cli.tables import one_line
from broker.errors import BrokerError, GenerationGone, GenerationNotFound
from broker.ids import check_id
from broker.settings.client_settings import ClientSettings
from broker.settings.loading import load, unknown_variables
from tokencast_client import Client, Forbidden, TokencastError, Unauthorized, Unreachable

FAILED, USAGE, CANCELLED, NOT_FOUND, INTERRUPTED, TERMINATED = 1, 2, 3, 4, 130, 143


def make_client(timeout: float = 60.0) -> Client:
    """Return a client for the gateway of TOKENCAST_URL and TOKENCAST_API_KEY. It repeats no request: a person who sees
    an error can decide."""
    settings = load(ClientSettings)
    return Client(settings.url, settings.api_key or "", timeout=timeout, max_retries=0)


def open_client() -> Client:
    """Return a client as a context manager, and print remarks about the environment."""
    client = make_client()
    for remark in unknown_variables().values():
        click.echo(f"tokencast: {remark}", err=True)
    return client


def exit_code(error: BrokerError | TokencastError) -> int:
    """Return the exit code for an error."""
    gone = getattr(error, "code", None) in (GenerationNotFound.code, GenerationGone.code)
    return NOT_FOUND if gone else USAGE


def for_each(ids: Iterable[str], work: Callable[[str], None]) -> NoReturn:
    """Do something with each generation, and exit. With several, one that fails is reported and does not stop the
    others; the exit code is then the lowest of those that failed."""
    gids = list(dict.fromkeys(ids))
    codes: set[int] = set()
    for gid in gids:
        try:
            work(check_id(gid))
        except (BrokerError, TokencastError) as error:
            if len(gids) == 1 or isinstance(error, Unreachable | Unauthorized | Forbidden):
                raise
            report(gid, error)
            codes.add(exit_code(error))
    sys.exit(min(codes, default=0))


def report(gid: str, error: Exception) -> None:
    """Print the error of one generation among several."""
    click.echo(f"tokencast: {one_line(gid)}: {one_line(str(error))}", err=True)


def json_line(value: Any) -> str:
    return harmless(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def exit_when_stdout_closes() -> None:
    """Exit as soon as the reader of stdout has closed it, as GNU tail does.

    For commands that may write nothing for a long time; in others the next write fails.
    """
    if sys.stdout.isatty():
        return
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # without an event mask poll reports hang-ups and errors only

    def wait() -> None:
        poll.poll()
        os._exit(128 + signal.SIGPIPE)

    threading.Thread(target=wait, daemon=True).start()


def examples(*lines: str) -> str:
    """Return the epilog of a command's help. `ID` in a line stands for a generation id."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
