"""Commands that send one request to a gateway and print the answer."""

from __future__ import annotations

import time
from typing import Any

import click

from broker.auth.stream_tokens import LONGEST
from broker.cli.completion import codes_to_complete, groups_to_complete, ids_to_complete, models_to_complete
from broker.cli.options import examples, for_each, json_line, open_client
from broker.cli.output import harmless
from broker.cli.tables import HEADINGS, facts, one_line, row, table
from broker.cli.times import Moment
from broker.events import STATUSES


@click.command(
    epilog=examples(
        "tokencast ls --status in_progress",
        "tokencast ls --status failed --code upstream_busy --since 2h",
        "tokencast ls --group nightly --model gabforge-coder --until 2026-01-31T12:00Z",
        "tokencast ls --limit 1000 | head",
        '''tokencast ls --json | python3 -c "import json, sys; print(json.loads(next(sys.stdin))['id'])"''',
    )
)
@click.option("--status", type=click.Choice(STATUSES), multiple=True, help="Only with this status; repeatable.")
@click.option("--model", shell_complete=models_to_complete, help="Only generations of this model.")
@click.option("--code", shell_complete=codes_to_complete, help="Only generations that failed with this error code.")
@click.option("--group", shell_complete=groups_to_complete, help="Only generations of this group.")
@click.option("--since", type=Moment(), help="Created at this time or later: 15m or 2h (ago), ISO 8601, unix seconds.")
@click.option("--until", type=Moment(), help="Created before this time.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Maximum number of generations.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON per generation, without its text.")
def ls(status: tuple[str, ...], limit: int, as_json: bool, **filters: Any) -> None:
    """List the newest generations.

    ERROR is the error code of a failed generation, or the reason why a queued one waits.
    """
    with open_client() as client:
        found = (one.raw for one in client.list(status=status, limit=limit, **filters))
        if as_json:
            for generation in found:
                click.echo(json_line(generation))
            return
        generations = list(found)
    now = time.time()
    for line in table([HEADINGS, *(row(generation, now) for generation in generations)]):
        click.echo(line)


@click.command(
    short_help="Show generations.",
    epilog=examples("tokencast show ID", "tokencast show ID --json", "tokencast show ID ID"),
)
@click.argument("ids", metavar="ID...", nargs=-1, required=True, shell_complete=ids_to_complete)
@click.option("--json", "as_json", is_flag=True, help="One line of JSON per generation.")
def show(ids: tuple[str, ...], as_json: bool) -> None:
    """Show generation ID: its properties, then its text. Several are separated by empty lines."""
    shown = 0
    with open_client() as client:

        def work(gid: str) -> None:
            nonlocal shown
            generation = client.get(gid)
            if as_json:
                click.echo(json_line(generation.raw))
                return
            lines = list(table(list(facts(generation.raw, time.time()))))
            text = ["", harmless(generation.text)] if generation.text else []
            click.echo("\n".join([*([""] if shown else []), *lines, *text]))
            shown += 1

        for_each(ids, work)


@click.command(
    short_help="Cancel generations.",
    epilog=examples("tokencast cancel ID", "tokencast cancel ID ID", "tokencast cancel ID --json"),
)
@click.argument("ids", metavar="ID...", nargs=-1, required=True, shell_complete=ids_to_complete)
@click.option("--json", "as_json", is_flag=True, help="One line of JSON per generation.")
def cancel(ids: tuple[str, ...], as_json: bool) -> None:
    """Cancel generation ID and print its status. A generation that has ended does not change.

    With several IDs, each status is printed after its id, and one that does not exist does not stop the others.
    """
    several = len(set(ids)) > 1
    with open_client() as client:

        def work(gid: str) -> None:
            generation = client.cancel(gid)
            status = f"{gid}  {generation.status}" if several else generation.status
            click.echo(json_line(generation.raw) if as_json else status)

        for_each(ids, work)


@click.command(
    short_help="Delete generations.", epilog=examples("tokencast delete ID", "tokencast delete ID ID --json")
)
@click.argument("ids", metavar="ID...", nargs=-1, required=True, shell_complete=ids_to_complete)
@click.option("--json", "as_json", is_flag=True, help='One line of JSON per generation: {"id", "deleted"}.')
def delete(ids: tuple[str, ...], as_json: bool) -> None:
    """Delete generation ID and print the id. A running generation is cancelled first; its followers receive `gone`.

    With several IDs, one that cannot be deleted does not stop the others.
    """
    with open_client() as client:

        def work(gid: str) -> None:
            client.delete(gid)
            click.echo(json_line({"id": gid, "deleted": True}) if as_json else gid)

        for_each(ids, work)


@click.command(short_help="List the models.", epilog=examples("tokencast models", "tokencast models --json"))
@click.option("--json", "as_json", is_flag=True, help="One line of JSON per model.")
def models(as_json: bool) -> None:
    """List the models that the gateway serves."""
    with open_client() as client:
        if not as_json:
            for model in client.models():
                click.echo(one_line(model))
            return
        for record in client.request("GET", "/v1/models")["data"]:
            click.echo(json_line(record))


@click.command(
    short_help="Create tokens that read one generation each.",
    epilog=examples("tokencast token ID", "tokencast token ID --ttl 60 --json", "tokencast token ID ID"),
)
@click.argument("ids", metavar="ID...", nargs=-1, required=True, shell_complete=ids_to_complete)
@click.option("--ttl", type=click.IntRange(1, LONGEST), default=LONGEST, show_default=True, help="Lifetime in seconds.")
@click.option("--json", "as_json", is_flag=True, help='A line of JSON per ID: {"token", "expires_at", "events_url"}.')
def token(ids: tuple[str, ...], ttl: int, as_json: bool) -> None:
    """Create a token with which a browser can read generation ID, and nothing else, until the token expires.

    With several IDs, there is a token for each.
    """
    several = len(set(ids)) > 1
    with open_client() as client:

        def work(gid: str) -> None:
            created = client.token(gid, ttl_seconds=ttl)
            expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(created.expires_at))
            columns = [("token", created.token), ("expires", expires), ("url", created.url)]
            whose = [("id", gid)] if several else []
            for line in [json_line(created.raw)] if as_json else table([*whose, *columns]):
                click.echo(line)

        for_each(ids, work)
