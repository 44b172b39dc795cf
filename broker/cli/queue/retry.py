"""The `retry` command."""

from __future__ import annotations

import sys
from typing import cast

import click

from broker.chunks import Json
from broker.cli.completion import codes_to_complete, groups_to_complete, ids_to_complete
from broker.cli.options import FAILED, examples, for_each, json_line, open_client
from broker.cli.tables import error_code, table
from broker.cli.times import Moment
from broker.events import FINAL_STATUSES, STATUSES


@click.command(
    short_help="Retry ended generations.",
    epilog=examples(
        "tokencast retry ID",
        "tokencast retry ID ID --json",
        "tokencast retry --status failed --code upstream_busy --since 1h --dry-run",
        "tokencast retry --status failed --status cancelled --group nightly --limit 100",
    ),
)
@click.argument("ids", metavar="[ID...]", nargs=-1, shell_complete=ids_to_complete)
@click.option(
    "--status",
    type=click.Choice([status for status in STATUSES if status in FINAL_STATUSES]),
    multiple=True,
    help="Retry all generations with this status; repeatable.",
)
@click.option("--code", shell_complete=codes_to_complete, help="Only those that failed with this error code.")
@click.option("--group", shell_complete=groups_to_complete, help="Only those of this group.")
@click.option("--since", type=Moment(), help="Created at this time or later: 15m or 2h (ago), ISO 8601, unix seconds.")
@click.option("--until", type=Moment(), help="Created before this time.")
@click.option("--limit", type=click.IntRange(1, 1000), help="Maximum number of generations; default: 1000.")
@click.option("--tenant", help="Those of this tenant; needs a key with the role operator.")
@click.option("--dry-run", is_flag=True, help="Only list the generations that match.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON per new generation; with --status, one in all.")
def retry(ids: tuple[str, ...], status: tuple[str, ...], dry_run: bool, as_json: bool, **filters: object) -> None:
    """Enqueue the requests of ended generations again, as new generations, and print the new ids.

    Either name the generations, or choose them with --status and the other filters: the newest that match. A
    generation that was retried before matches again. The exit code is 1 if one that matches was refused.
    """
    given = {name: value for name, value in filters.items() if value is not None}
    if ids and (status or given or dry_run):
        raise click.UsageError("IDs exclude the filters and --dry-run.")
    if not ids and not status:
        raise click.UsageError("IDs or --status are required.")
    if ids:
        _retry_each(ids, as_json)
    else:
        _retry_matching({"status": list(status), "dry_run": dry_run, **given}, as_json)


def _retry_each(ids: tuple[str, ...], as_json: bool) -> None:
    with open_client() as client:

        def work(gid: str) -> None:
            generation = client.retry(gid)
            click.echo(json_line(generation.raw) if as_json else generation.id)

        for_each(ids, work)


def _retry_matching(request: Json, as_json: bool) -> None:
    with open_client() as client:
        result = client.retry_all(**request).raw
    if as_json:
        click.echo(json_line(result))
    else:
        _print(result, dry_run=request["dry_run"])
    refused = any("error" in item and "id" not in item for item in result["data"])
    sys.exit(FAILED if refused else 0)


def _print(result: Json, *, dry_run: bool) -> None:
    data = cast("list[Json]", result["data"])
    generations = [item for item in data if "id" in item]
    about = ("STATUS", "MODEL", "ERROR") if dry_run else ("RETRY OF", "MODEL")
    rows: list[tuple[str, ...]] = [("ID", *about)]
    for one in generations:
        rest = (one["status"], one["model"], error_code(one)) if dry_run else (one["retry_of"] or "-", one["model"])
        rows.append((one["id"], *rest))
    for line in table(rows) if generations else ():
        click.echo(line)
    for message in dict.fromkeys(item["error"]["message"] for item in data if "id" not in item):
        click.echo(f"tokencast: not retried: {message}", err=True)
    more = "; there may be more" if result["has_more"] else ""
    done = f"{result['matched']} matched" if dry_run else f"{result['matched']} matched, {result['retried']} retried"
    click.echo(done + more)
