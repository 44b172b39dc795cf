"""Shared by the commands: exit codes, the gateway client, JSON output and the examples in `--help`."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
from typing import Any

import click

from broker.cli.output import harmless
from broker.gateway_client.client import Client
from broker.settings.client_settings import ClientSettings
from broker.settings.loading import load, unknown_variables

FAILED, USAGE, CANCELLED, NOT_FOUND, INTERRUPTED, TERMINATED = 1, 2, 3, 4, 130, 143


def open_client() -> Client:
    """Return a client for the gateway of TOKENCAST_URL and TOKENCAST_API_KEY, as a context manager."""
    client = Client(load(ClientSettings))
    for remark in unknown_variables().values():
        click.echo(f"tokencast: {remark}", err=True)
    return client


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
