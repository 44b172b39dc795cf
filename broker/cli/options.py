"""What the commands have in common: exit codes, the gateway they talk to, the examples in their help."""

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
from broker.settings.settings import ClientSettings, load, unknown_variables

FAILED, USAGE, CANCELLED, NOT_FOUND, INTERRUPTED, TERMINATED = 1, 2, 3, 4, 130, 143


def open_client() -> Client:
    """Of TOKENCAST_URL and TOKENCAST_API_KEY; a context manager."""
    client = Client(load(ClientSettings))
    for remark in unknown_variables().values():
        click.echo(f"tokencast: {remark}", err=True)
    return client


def json_line(value: Any) -> str:
    return harmless(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def end_with_reader() -> None:
    """For a command that may have nothing to write for a long time: ends it when nobody reads stdout any more, as GNU
    tail does. Elsewhere the next write finds out."""
    if sys.stdout.isatty():
        return
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # no event is asked for, so only that it is over is told

    def wait() -> None:
        poll.poll()
        os._exit(128 + signal.SIGPIPE)

    threading.Thread(target=wait, daemon=True).start()


def examples(*lines: str) -> str:
    """An epilog for a command's help. ID in a line stands for a generation's."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
