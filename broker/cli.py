"""The `tokencast` command. Its client commands talk HTTP to a gateway, the others become or start the processes.

The one place that turns errors into exit codes.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

import click

from broker import dev as dev_run
from broker.cli_access import new_key
from broker.client import Client, Json
from broker.errors import BrokerError, GenerationGone, GenerationNotFound
from broker.events import STATUSES
from broker.ids import check_id
from broker.printer import CONTROL, LinePrinter, Printer, harmless, json_event
from broker.process import python_module
from broker.settings import ClientSettings, load
from broker.tokens import LONGEST
from broker.version import __version__

FAILED, USAGE, CANCELLED, NOT_FOUND, INTERRUPTED = 1, 2, 3, 4, 130
_EXIT_BY_EVENT = {"completed": 0, "failed": FAILED, "cancelled": CANCELLED, "gone": NOT_FOUND}

_EPILOG = f"""\b
Exit codes:
  0  done; for `follow`: the generation completed
  {FAILED}  the generation failed
  {USAGE}  wrong usage or settings, or no gateway, or one that refuses
  {CANCELLED}  the generation was cancelled
  {NOT_FOUND}  no such generation, or no longer
  {INTERRUPTED}  Ctrl-C; the generation goes on

\b
Environment of the client commands:
  TOKENCAST_URL      the gateway (http://127.0.0.1:8000)
  TOKENCAST_API_KEY  the key to present
"""


def main() -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows `?` in its place
    try:
        cli(prog_name="tokencast")
    except (GenerationNotFound, GenerationGone) as error:
        click.echo(f"tokencast: {error}", err=True)
        sys.exit(NOT_FOUND)
    except BrokerError as error:
        click.echo(f"tokencast: {error}", err=True)
        sys.exit(USAGE)
    sys.exit(0)


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="tokencast %(version)s")
def cli() -> None:
    """One upstream call, one durable log, any number of readers."""


# --- processes -----------------------------------------------------------------------------------------------


@cli.command()
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
_becomes("upstream-sim", "worker.upstream_sim", "The simulated OpenAI-compatible upstream.")
cli.add_command(new_key)


# --- the client ----------------------------------------------------------------------------------------------


@cli.command()
@click.argument("prompt", required=False)
@click.option("--model", help="Default: the first that the gateway lists.")
@click.option("--system", help="A system message before the prompt.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="Kept with the generation; repeatable.")
@click.option("--idempotency-key", help="The same key and prompt again give the same generation.")
@click.option("--follow", "then_follow", is_flag=True, help="Print the text as it comes; the id goes to stderr.")
@click.option("--json", "as_json", is_flag=True, help="Print the generation, or with --follow its events, as JSON.")
def enqueue(
    prompt: str | None,
    model: str | None,
    system: str | None,
    metadata: tuple[str, ...],
    idempotency_key: str | None,
    then_follow: bool,
    as_json: bool,
) -> None:
    """Enqueue PROMPT, or standard input, and print the generation's id."""
    content = prompt_from(prompt)
    messages = [{"role": "user", "content": content}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
    pairs = pairs_from(metadata)
    with _client() as client:
        body: Json = {"model": model or client.default_model(), "messages": messages}
        if pairs:
            body["metadata"] = pairs
        generation = client.post("/v1/generations", body, headers)
        if not then_follow:
            click.echo(_json(generation) if as_json else generation["id"])
            return
        click.echo(generation["id"], err=True)
        _follow(client, [generation["id"]], None, as_json)


@cli.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("--after", metavar="CURSOR", help="Begin behind this event; `latest`: with what comes from now on.")
@click.option("--json", "as_json", is_flag=True, help='One line per event: {"id", "event", "data"}.')
def follow(ids: tuple[str, ...], after: str | None, as_json: bool) -> None:
    """Print the text of generation ID as it comes, from its beginning, until it ends.

    Survives lost connections and restarts of the gateway. Several are printed line by line, each line behind the end of
    its generation's id, or as JSON with a "generation"; the exit code is then 0 only if all of them completed.
    """
    gids = list(dict.fromkeys(map(check_id, ids)))
    if len(gids) > 1 and after not in (None, "latest"):
        raise click.UsageError("With several IDs, --after can only be `latest`.")
    with _client() as client:
        _follow(client, gids, after, as_json)


@cli.command()
@click.argument("id")
@click.option("--speed", type=float, default=1.0, show_default=True, help="So many times as fast; 0.01 to 1000.")
@click.option("--after", metavar="CURSOR", help="Begin behind this event.")
@click.option("--json", "as_json", is_flag=True, help='One line per event: {"id", "event", "data"}.')
def replay(id: str, speed: float, after: str | None, as_json: bool) -> None:  # noqa: A002
    """Print the text of generation ID as it came, at the speed it came with, or another one."""
    with _client() as client:
        _follow(client, [check_id(id)], after, as_json, speed)


@cli.command()
@click.option("--status", type=click.Choice(STATUSES), help="Only those.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="At most so many, the newest.")
@click.option("--json", "as_json", is_flag=True, help="One line per generation.")
def ls(status: str | None, limit: int, as_json: bool) -> None:
    """List the newest generations."""
    with _client() as client:
        generations = list(client.generations(status, limit))
    if as_json:
        for generation in generations:
            click.echo(_json(generation))
        return
    now = time.time()
    for line in table([_HEADINGS, *(row(generation, now) for generation in generations)]):
        click.echo(line)


@cli.command()
@click.argument("id")
@click.option("--json", "as_json", is_flag=True, help="The generation as the gateway gives it.")
def show(id: str, as_json: bool) -> None:  # noqa: A002
    """Show generation ID: what is known about it, then its text."""
    with _client() as client:
        generation = client.get(f"/v1/generations/{check_id(id)}")
    if as_json:
        click.echo(_json(generation))
        return
    for line in table(list(facts(generation, time.time()))):
        click.echo(line)
    if generation["text"]:
        click.echo("\n" + harmless(generation["text"]))


@cli.command()
@click.argument("id")
@click.option("--json", "as_json", is_flag=True, help="The generation as the gateway gives it.")
def cancel(id: str, as_json: bool) -> None:  # noqa: A002
    """Cancel generation ID and print its status; one that has ended stays as it is."""
    with _client() as client:
        generation = client.post(f"/v1/generations/{check_id(id)}/cancel")
    click.echo(_json(generation) if as_json else generation["status"])


@cli.command()
@click.argument("id")
@click.option("--ttl", type=click.IntRange(1, LONGEST), default=LONGEST, show_default=True, help="In seconds.")
@click.option("--json", "as_json", is_flag=True, help="As the gateway gives it.")
def token(id: str, ttl: int, as_json: bool) -> None:  # noqa: A002
    """Make a token with which a browser may read generation ID, and nothing else, for a while."""
    with _client() as client:
        made = client.post(f"/v1/generations/{check_id(id)}/token", {"ttl_seconds": ttl})
        url = client.url + made["events_url"]
    expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(made["expires_at"]))
    lines = [_json(made)] if as_json else table([("token", made["token"]), ("expires", expires), ("url", url)])
    for line in lines:
        click.echo(line)


# --- following -----------------------------------------------------------------------------------------------


def _follow(
    client: Client, gids: Sequence[str], after: str | None, as_json: bool, speed: float | None = None
) -> NoReturn:
    """The text of one, or of several line by line; the exit code is the worst one's."""
    one = gids[0] if len(gids) == 1 else None
    printer = Printer() if one else LinePrinter()
    if one:
        events = client.follow(one, after, speed=speed, notice=printer.note)
    else:
        events = client.follow_all([f"{gid}@{after}" if after else gid for gid in gids], notice=printer.note)
    endings: dict[str, str] = {}
    cursor = after
    try:
        for received in events:
            cursor = received.id or cursor
            if received.event in _EXIT_BY_EVENT:
                endings[received.generation or gids[0]] = received.event
            if as_json:
                click.echo(json_event(received))
            else:
                printer.show(received)
    except KeyboardInterrupt:
        behind = f" --after {cursor}" if cursor and one else ""
        printer.note(f"it goes on; read on with: tokencast follow {' '.join(gids)}{behind}")
        sys.exit(INTERRUPTED)
    for gid in gids:
        if gid not in endings:  # there was nothing behind the cursor
            endings[gid] = str(client.get(f"/v1/generations/{gid}")["status"])
    codes = {_EXIT_BY_EVENT.get(ending, FAILED) for ending in endings.values()} - {0}
    sys.exit(min(codes, default=0))


# --- input and output ----------------------------------------------------------------------------------------

_HEADINGS = ("ID", "STATUS", "MODEL", "AGE", "ATTEMPT", "TOKENS")


def row(generation: Json, now: float) -> tuple[str, ...]:
    """A line of `ls`."""
    age, attempt = duration(now - generation["created_at"]), str(generation["attempt"] or "-")
    return generation["id"], generation["status"], generation["model"], age, attempt, tokens(generation["usage"])


def facts(generation: Json, now: float) -> Iterator[tuple[str, str]]:
    """The lines of `show`."""
    for name in ("id", "status", "model"):
        yield name, generation[name]
    yield "age", duration(now - generation["created_at"])
    if generation["started_at"] is not None:
        yield "attempt", str(generation["attempt"])
        if generation["first_token_at"] is not None:
            yield "first token", f"after {generation['first_token_at'] - generation['created_at']:.3f} s"
        if generation["ended_at"] is not None:
            yield "duration", f"{generation['ended_at'] - generation['started_at']:.3f} s"
    yield "tokens", tokens(generation["usage"])
    yield "cursor", generation["cursor"]
    for key, value in generation["metadata"].items():
        yield f"metadata.{key}", value
    if generation["error"]:
        yield "error", f"{generation['error']['message']} ({generation['error'].get('code')})"


def table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """The rows as lines, in columns."""
    clean = [[cell.translate(CONTROL).replace("\n", " ") for cell in cells] for cells in rows]
    widths = [max(map(len, column)) for column in zip(*clean, strict=True)]
    for cells in clean:
        yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def duration(seconds: float) -> str:
    """Short: 0s, 59s, 3m, 2h, 5d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"


def tokens(usage: Json | None) -> str:
    """Of the answer; `~` where they were counted and not reported."""
    if not usage or usage.get("completion_tokens") is None:
        return "-"
    return f"{'~' if usage.get('estimated') else ''}{usage['completion_tokens']}"


def prompt_from(argument: str | None) -> str:
    """The argument, or standard input without the line break at its end."""
    if argument in (None, "-") and sys.stdin.isatty():
        raise click.UsageError("A PROMPT is needed, as an argument or on standard input.")
    try:
        text = sys.stdin.buffer.read().decode().rstrip("\r\n") if argument in (None, "-") else str(argument)
        text.encode()
    except UnicodeError:
        raise click.UsageError("The prompt is not valid UTF-8.") from None
    if not text:
        raise click.UsageError("The prompt is empty.")
    return text


def pairs_from(metadata: Iterable[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for pair in metadata:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE.", param_hint="--metadata")
        pairs[key] = value
    return pairs


def _client() -> Client:
    return Client(load(ClientSettings))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
