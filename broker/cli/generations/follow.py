"""Commands that print the text of generations: `follow` live, `replay` at recorded speed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from broker.cli.completion import ids_to_complete
from broker.cli.generations.progress import ProgressLine
from broker.cli.options import (
    CANCELLED,
    FAILED,
    INTERRUPTED,
    NOT_FOUND,
    examples,
    exit_when_stdout_closes,
    open_client,
    report,
)
from broker.cli.output import LinePrinter, Printer, json_event
from broker.errors import GenerationNotFound
from broker.ids import check_id
from tokencast_client import Client

_EXIT_BY_EVENT = {"completed": 0, "failed": FAILED, "cancelled": CANCELLED, "gone": NOT_FOUND}


@click.command(
    short_help="Print a text as it is generated.",
    epilog=examples(
        "tokencast follow ID",
        "tokencast follow ID --after latest",
        "tokencast follow ID ID --json",
        "tokencast follow ID > answer.txt && echo complete",
    ),
)
@click.argument("ids", metavar="ID...", nargs=-1, required=True, shell_complete=ids_to_complete)
@click.option("--after", metavar="CURSOR", help="Start after this event; `latest`: only new events.")
@click.option("--json", "as_json", is_flag=True, help='One line of JSON per event: {"id", "event", "data"}.')
def follow(ids: tuple[str, ...], after: str | None, as_json: bool) -> None:
    """Print the text of generation ID from its beginning, as it is generated, until the generation ends.

    Lost connections and restarts of the gateway are survived. Several generations are printed line by line, each line
    prefixed with the end of its generation's id, or as JSON with a "generation" field. The exit code is then 0 only if
    all of them completed; an ID that does not exist does not stop the others.
    """
    given = list(dict.fromkeys(ids))
    if len(given) > 1 and after not in (None, "latest"):
        raise click.UsageError("With several IDs, --after can only be `latest`.")
    gids = [check_id(given[0])] if len(given) == 1 else [gid for gid in given if _is_id(gid)]
    with open_client() as client:
        print_events(client, gids, after, as_json, named=len(given) > 1, missing=len(gids) < len(given))


def _is_id(gid: str) -> bool:
    """Return whether a text is an id; report one that is not."""
    try:
        return bool(check_id(gid))
    except GenerationNotFound as error:
        report(gid, error)
        return False


@click.command(
    short_help="Replay a text at its recorded speed.",
    epilog=examples("tokencast replay ID", "tokencast replay ID --speed 10 --json"),
)
@click.argument("id", shell_complete=ids_to_complete)
@click.option("--speed", type=float, default=1.0, show_default=True, help="Speed factor, 0.01 to 1000.")
@click.option("--after", metavar="CURSOR", help="Start after this event.")
@click.option("--json", "as_json", is_flag=True, help='One line of JSON per event: {"id", "event", "data"}.')
def replay(id: str, speed: float, after: str | None, as_json: bool) -> None:  # noqa: A002
    """Print the text of generation ID with its recorded timing, scaled by --speed."""
    with open_client() as client:
        print_events(client, [check_id(id)], after, as_json, speed=speed)


def print_events(
    client: Client,
    gids: Sequence[str],
    after: str | None,
    as_json: bool,
    *,
    speed: float | None = None,
    named: bool = False,
    missing: bool = False,
) -> NoReturn:
    """Print the text of one generation, or of several line by line (`named`), and exit.

    The exit code of several is 0 if all completed, otherwise the lowest code of those that did not. `missing`: one of
    them does not exist.
    """
    one = None if named else gids[0]
    printer = Printer() if one else LinePrinter()
    progress = ProgressLine(client, one if one and after is None and speed is None else None)

    def on_disconnect(_: str) -> None:
        progress.clear()
        printer.note("connection lost, reconnecting")

    if one:
        events = client.follow(one, after, speed=speed, on_disconnect=on_disconnect)
    else:
        names = [f"{gid}@{after}" if after else gid for gid in gids]
        events = client.follow_all(names, on_disconnect=on_disconnect)
    exit_when_stdout_closes()
    endings: dict[str, str] = {}
    cursor = after
    try:
        with progress:
            for event in events:
                progress.update(event)
                cursor = event.cursor or cursor
                if event.terminal:
                    endings[event.generation] = event.name
                if as_json:
                    click.echo(json_event(event, named=named))
                else:
                    printer.show(event)
    except KeyboardInterrupt:
        after_option = f" --after {cursor}" if cursor and one else ""
        printer.note(f"the generation continues; to resume: tokencast follow {' '.join(gids)}{after_option}")
        sys.exit(INTERRUPTED)
    for gid in gids:
        if gid not in endings:  # there were no events after the cursor
            endings[gid] = client.get(gid).status
    codes = {_EXIT_BY_EVENT.get(ending, FAILED) for ending in endings.values()} - {0}
    codes |= {NOT_FOUND} if missing else set()
    sys.exit(min(codes, default=0))
