"""The `tokencast` command. Its client commands talk HTTP to a gateway, the others become or start the processes.

The one place that turns errors into exit codes.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn, cast

import click

from broker import dev as dev_run
from broker.client import Client, Json, Received
from broker.errors import BrokerError, GenerationGone, GenerationNotFound
from broker.events import STATUSES
from broker.ids import check_id
from broker.process import python_module
from broker.settings import ClientSettings, load
from broker.tokens import LONGEST
from broker.version import __version__

FAILED, USAGE, CANCELLED, NOT_FOUND, INTERRUPTED = 1, 2, 3, 4, 130
_EXIT_BY_EVENT = {"completed": 0, "failed": FAILED, "cancelled": CANCELLED, "gone": NOT_FOUND}

# What a model says can hold escape sequences; a terminal would carry them out.
_CONTROL = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}

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
        _follow(client, generation["id"], None, as_json)


@cli.command()
@click.argument("id")
@click.option("--after", metavar="CURSOR", help="Begin behind this event; `latest`: with what comes from now on.")
@click.option("--json", "as_json", is_flag=True, help='One line per event: {"id", "event", "data"}.')
def follow(id: str, after: str | None, as_json: bool) -> None:  # noqa: A002 - click names the argument by it
    """Print the text of generation ID as it comes, from its beginning, until it ends.

    Survives lost connections and restarts of the gateway.
    """
    with _client() as client:
        _follow(client, check_id(id), after, as_json)


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
        click.echo("\n" + _harmless(generation["text"]))


@cli.command()
@click.argument("id")
def cancel(id: str) -> None:  # noqa: A002
    """Cancel generation ID and print its status; one that has ended stays as it is."""
    with _client() as client:
        click.echo(client.post(f"/v1/generations/{check_id(id)}/cancel")["status"])


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


def _follow(client: Client, gid: str, after: str | None, as_json: bool) -> NoReturn:
    printer = Printer()
    event, cursor = "", after
    try:
        for received in client.follow(gid, after, notice=printer.note):
            event, cursor = received.event, received.id or cursor
            if as_json:
                click.echo(json_event(received))
            else:
                printer.show(received)
    except KeyboardInterrupt:
        behind = f" --after {cursor}" if cursor else ""
        printer.note(f"it goes on; read on with: tokencast follow {gid}{behind}")
        sys.exit(INTERRUPTED)
    if not event:  # there was nothing behind the cursor
        event = str(client.get(f"/v1/generations/{gid}")["status"])
    sys.exit(_EXIT_BY_EVENT.get(event, FAILED))


_PRINTED = frozenset({"chunk", "reset", "gap", "waiting", *_EXIT_BY_EVENT})


class Printer:
    """Shows events to a person: the text of choice 0 on stdout, everything else on stderr."""

    def __init__(self) -> None:
        self._in_line = False
        self._half: str = ""  # of a surrogate pair: some upstreams send its two escapes in two chunks

    def show(self, received: Received) -> None:
        if received.event not in _PRINTED:
            return
        data = cast(Json, json.loads(received.data))
        if received.event not in ("chunk", "waiting", "gap"):
            self._end_line()
        match received.event:
            case "chunk":
                self._write(text_of(data))
            case "reset":
                self.note(f"started again ({data.get('reason')}), forget the text so far")
            case "gap":
                self.note("a part of the text is no longer kept")
            case "waiting":
                self.note(f"waiting for the upstream ({data.get('reason')})")
            case "failed":
                self.note(f"failed: {data['error']['message']} ({data['error'].get('code')})")
            case "cancelled":
                self.note("cancelled")
            case "gone":
                self.note("deleted")
            case _:
                pass

    def note(self, text: str) -> None:
        """On stderr. Never alters the text, which a file or a pipe may get: the line break is the terminal's."""
        before = "\n" if self._in_line and sys.stdout.isatty() else ""
        click.echo(f"{before}tokencast: {text.translate(_CONTROL)}", err=True)

    def _write(self, text: str) -> None:
        text = self._half + text
        self._half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        text = text.removesuffix(self._half).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if text:
            click.echo(_harmless(text), nl=False)
            self._in_line = not text.endswith("\n")

    def _end_line(self) -> None:
        self._half = ""
        if self._in_line:
            click.echo()
            self._in_line = False


def text_of(chunk: Json) -> str:
    """What a chunk adds to the text of choice 0."""
    text = ""
    for choice in cast("list[Json]", chunk.get("choices") or []):
        if choice.get("index", 0) == 0:
            delta = cast(Json, choice.get("delta") or {})
            text += delta.get("content") or ""
    return text


def json_event(received: Received) -> str:
    """One line; the data as it came."""
    data = received.data.replace("\n", " ")  # raw line breaks in JSON are nothing but white space
    return f'{{"id":{_json(received.id)},"event":{_json(received.event)},"data":{data}}}'


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
    clean = [[cell.translate(_CONTROL).replace("\n", " ") for cell in cells] for cells in rows]
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


def _harmless(text: str) -> str:
    return text.translate(_CONTROL) if sys.stdout.isatty() else text
