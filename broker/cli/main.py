"""The `tokencast` command. Its client commands talk HTTP to a gateway, the others become or start the processes.

The one place that turns errors into exit codes.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import NoReturn

import click
from click.shell_completion import shell_complete

from broker.cli.commands import cancel, delete, enqueue, ls, models, show, token
from broker.cli.completion import COMPLETE, completion
from broker.cli.follow import follow, replay
from broker.cli.keys import new_key
from broker.cli.options import CANCELLED, FAILED, INTERRUPTED, NOT_FOUND, TERMINATED, USAGE, examples
from broker.cli.tables import one_line
from broker.cli.top import top
from broker.dev import launcher as dev_run
from broker.errors import BrokerError, GenerationGone, GenerationNotFound
from broker.runtime.environment import read_variable
from broker.runtime.process import python_module
from broker.version import __version__

_EPILOG = f"""\b
Exit codes:
  0  done; for `follow`: the generation completed
  {FAILED}  the generation failed
  {USAGE}  wrong usage or settings, or no gateway, or one that refuses
  {CANCELLED}  the generation was cancelled
  {NOT_FOUND}  no such generation, or no longer
  {INTERRUPTED}  Ctrl-C; the generation goes on ({TERMINATED}: SIGTERM)
  141  whoever read the output has left, as in `tokencast ls | head`

\b
In pipes:
  stdout holds what was asked for and nothing else, with --json one object a
  line. Errors and remarks are lines of text on stderr, with --json too: look
  at the exit code. Control codes and progress go to terminals only.

\b
Environment of the client commands:
  TOKENCAST_URL      the gateway (http://127.0.0.1:8000)
  TOKENCAST_API_KEY  the key to present
"""


def main() -> NoReturn:
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - closed by who started this, as with `>&-`
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows `?` in its place
    sys.exit(_run())


def _run() -> int:
    """The exit code."""
    try:
        code = _command()
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokerError as error:
        click.echo(f"tokencast: {one_line(str(error))}", err=True)
        return NOT_FOUND if isinstance(error, GenerationNotFound | GenerationGone) else USAGE
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:  # not from the gateway: the client has names of its own for that
        _die_as_writers_do()
    return code


def _command() -> int:
    """Not `cli.main()`, which takes a reader that leaves for an exit code 1."""
    if asked := read_variable(COMPLETE):
        return shell_complete(cli, {}, "tokencast", COMPLETE, asked)
    try:
        with cli.make_context("tokencast", sys.argv[1:]) as context:
            cli.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0
    return 0


def _die_as_writers_do() -> NoReturn:
    """Of SIGPIPE, which Python ignores, so that a shell sees what it sees of `yes | head`."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)
    raise AssertionError("unreachable")


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="tokencast %(version)s")
def cli() -> None:
    """One upstream call, one durable log, any number of readers."""


# --- processes -----------------------------------------------------------------------------------------------


@cli.command(
    short_help="Start everything on this machine.", epilog=examples("tokencast dev", "PORT=8123 tokencast dev")
)
def dev() -> None:
    """Everything on this machine until Ctrl-C: Redis, a worker, a gateway.

    With OPENAI_API_KEY or OPENAI_BASE_URL it asks that upstream, with neither a simulated one. REDIS_URL is used
    instead of a Redis of its own. PORT (8000) is the gateway's.
    """
    sys.exit(dev_run.run())


def _becomes(name: str, module: str, summary: str) -> None:
    """A command that turns into another program: signals and exit codes are its own."""

    @cli.command(
        name,
        help=f"{summary} `tokencast {name} --help` for its options.",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True},
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def command(arguments: tuple[str, ...]) -> None:
        sys.stdout.flush()
        program, *rest = python_module(module, *arguments)
        os.execv(program, [program, *rest])  # noqa: S606 - our own interpreter

    del command


_becomes("api", "api", "One gateway, from the environment.")
_becomes("worker", "worker", "One worker, from the environment.")
_becomes("upstream-sim", "worker.simulator", "The simulated OpenAI-compatible upstream.")
for command in (enqueue, follow, replay, ls, top, show, cancel, delete, token, models, new_key, completion):
    cli.add_command(command)
