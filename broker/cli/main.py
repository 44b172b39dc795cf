"""The `tokencast` command: client commands speak HTTP to a gateway, process commands start a gateway or a worker.

This is the one place that turns errors into exit codes.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import NoReturn

import click
from click.shell_completion import shell_complete

from broker.cli.api_key import new_key
from broker.cli.batch.command import batch
from broker.cli.completion import COMPLETE, completion
from broker.cli.generations.commands import cancel, delete, ls, models, show, token
from broker.cli.generations.enqueue import enqueue
from broker.cli.generations.follow import follow, replay
from broker.cli.options import CANCELLED, FAILED, INTERRUPTED, NOT_FOUND, TERMINATED, USAGE, examples, exit_code
from broker.cli.queue.queue import pause, queue, resume
from broker.cli.queue.retry import retry
from broker.cli.queue.upstreams import upstreams
from broker.cli.settings import settings
from broker.cli.tables import one_line
from broker.cli.top.command import top
from broker.errors import BrokerError
from broker.runtime.environment import read_variable
from broker.runtime.process import python_module
from broker.version import __version__
from tokencast_client import TokencastError

_EPILOG = f"""\b
Exit codes:
  0  success; for `follow`: the generation completed
  {FAILED}  the generation failed; for `batch` and `retry`: some failed
  {USAGE}  invalid usage or settings, no gateway, or a refused request
  {CANCELLED}  the generation was cancelled
  {NOT_FOUND}  the generation does not exist, or no longer exists
  {INTERRUPTED}  Ctrl-C; the generation continues ({TERMINATED}: SIGTERM)
  141  the reader of the output closed it, as in `tokencast ls | head`

\b
In pipes:
  stdout holds the result and nothing else; with --json, one object per line.
  Errors and notices are lines of text on stderr, also with --json: check the
  exit code. Control codes and progress are written to terminals only.

\b
Environment of the client commands:
  TOKENCAST_URL      URL of the gateway (http://127.0.0.1:8000)
  TOKENCAST_API_KEY  API key
"""


def main() -> NoReturn:
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - closed by the parent process, as with `>&-`
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # print `?` for a character that the encoding lacks
    sys.exit(_run())


def _run() -> int:
    """Run the command and return its exit code."""
    try:
        code = _command()
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (BrokerError, TokencastError) as error:
        click.echo(f"tokencast: {one_line(str(error))}", err=True)
        return exit_code(error)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:  # of stdout: the client raises errors of its own for a connection to the gateway
        _die_of_sigpipe()
    return code


def _command() -> int:
    """Run without `cli.main()`, which turns a closed stdout into exit code 1."""
    if instruction := read_variable(COMPLETE):
        return shell_complete(cli, {}, "tokencast", COMPLETE, instruction)
    try:
        with cli.make_context("tokencast", sys.argv[1:]) as context:
            cli.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0
    return 0


def _die_of_sigpipe() -> NoReturn:
    """Die of SIGPIPE, which Python ignores by default, so that a shell sees the same status as for `yes | head`."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)
    raise AssertionError("unreachable")


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="tokencast %(version)s")
def cli() -> None:
    """One upstream call, one durable log, any number of readers."""


# --- processes -----------------------------------------------------------------------------------------------


@cli.command(
    short_help="Start Redis, a worker and a gateway on this machine.",
    epilog=examples("tokencast dev", "PORT=8123 tokencast dev"),
)
def dev() -> None:
    """Run Redis, a worker and a gateway on this machine until Ctrl-C.

    The upstream is the one of OPENAI_API_KEY and OPENAI_BASE_URL; if neither is set, it is simulated. If REDIS_URL is
    set, that Redis is used instead of an embedded one. PORT (8000) is the port of the gateway.
    """
    from broker.dev import launcher  # for this command alone

    sys.exit(launcher.run())


def _becomes(name: str, module: str, summary: str) -> None:
    """Add a command that replaces this process by another program, which then handles signals and exit codes."""

    @cli.command(
        name,
        help=f"{summary} Options: `tokencast {name} --help`.",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True},
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def command(arguments: tuple[str, ...]) -> None:
        sys.stdout.flush()
        program, *rest = python_module(module, *arguments)
        os.execv(program, [program, *rest])  # noqa: S606 - our own interpreter

    del command


_becomes("api", "api", "Run a gateway, configured by environment variables.")
_becomes("worker", "worker", "Run a worker, configured by environment variables.")
_becomes("upstream-sim", "worker.simulator", "Run the simulated OpenAI-compatible upstream.")
for command in (
    *(enqueue, follow, replay, ls, top, show, cancel, delete, retry, token, models, new_key, completion),
    *(batch, queue, pause, resume, upstreams, settings),
):
    cli.add_command(command)
