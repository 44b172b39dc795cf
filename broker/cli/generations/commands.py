"""Commands that send one request to a gateway and print the answer."""

from __future__ import annotations

import time

import click

from broker.auth.stream_tokens import LONGEST
from broker.cli.completion import codes_to_complete, groups_to_complete, ids_to_complete, models_to_complete
from broker.cli.options import examples, json_line, open_client
from broker.cli.output import harmless
from broker.cli.tables import HEADINGS, facts, one_line, row, table
from broker.cli.times import Moment
from broker.events import STATUSES
from broker.ids import check_id


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
def ls(status: tuple[str, ...], limit: int, as_json: bool, **filters: str | float | None) -> None:
    """List the newest generations.

    ERROR is the error code of a failed generation, or the reason why a queued one waits.
    """
    given = {name: str(value) for name, value in filters.items() if value is not None}
    with open_client() as client:
        found = client.generations(limit, status=",".join(status), **given)
        if as_json:
            for generation in found:
                click.echo(json_line(generation))
            return
        generations = list(found)
    now = time.time()
    for line in table([HEADINGS, *(row(generation, now) for generation in generations)]):
        click.echo(line)


@click.command(short_help="Show a generation.", epilog=examples("tokencast show ID", "tokencast show ID --json"))
@click.argument("id", shell_complete=ids_to_complete)
@click.option("--json", "as_json", is_flag=True, help="Print the generation as JSON.")
def show(id: str, as_json: bool) -> None:  # noqa: A002
    """Show generation ID: its properties, then its text."""
    with open_client() as client:
        generation = client.get(f"/v1/generations/{check_id(id)}")
    if as_json:
        click.echo(json_line(generation))
        return
    for line in table(list(facts(generation, time.time()))):
        click.echo(line)
    if text := str(generation.get("text") or ""):
        click.echo("\n" + harmless(text))


@click.command(
    short_help="Cancel generations.",
    epilog=examples("tokencast cancel ID", "tokencast cancel ID ID", "tokencast cancel ID --json"),
)
@click.argument("ids", metavar="ID...", nargs=-1, required=True, shell_complete=ids_to_complete)
@click.option("--json", "as_json", is_flag=True, help="One line of JSON per generation.")
def cancel(ids: tuple[str, ...], as_json: bool) -> None:
    """Cancel generation ID and print its status. A generation that has ended does not change.

    With several IDs, each status is printed after its id, and the command stops at the first that does not exist.
    """
    gids = list(dict.fromkeys(map(check_id, ids)))
    with open_client() as client:
        for gid in gids:
            generation = client.post(f"/v1/generations/{gid}/cancel")
            status = generation["status"] if len(gids) == 1 else f"{gid}  {generation['status']}"
            click.echo(json_line(generation) if as_json else status)


@click.command(
    short_help="Delete a generation.", epilog=examples("tokencast delete ID", "tokencast delete ID ID --json")
)
@click.argument("ids", metavar="ID...", nargs=-1, required=True, shell_complete=ids_to_complete)
@click.option("--json", "as_json", is_flag=True, help='One line of JSON per generation: {"id", "deleted"}.')
def delete(ids: tuple[str, ...], as_json: bool) -> None:
    """Delete generation ID and print the id. A running generation is cancelled first; its followers receive `gone`.

    With several IDs, the command stops at the first that cannot be deleted.
    """
    with open_client() as client:
        for gid in dict.fromkeys(map(check_id, ids)):
            client.delete(f"/v1/generations/{gid}")
            click.echo(json_line({"id": gid, "deleted": True}) if as_json else gid)


@click.command(short_help="List the models.", epilog=examples("tokencast models", "tokencast models --json"))
@click.option("--json", "as_json", is_flag=True, help="One line of JSON per model.")
def models(as_json: bool) -> None:
    """List the models that the gateway serves."""
    with open_client() as client:
        for model in client.models():
            click.echo(json_line(model) if as_json else one_line(model["id"]))


@click.command(
    short_help="Create a token that reads one generation.",
    epilog=examples("tokencast token ID", "tokencast token ID --ttl 60 --json"),
)
@click.argument("id", shell_complete=ids_to_complete)
@click.option("--ttl", type=click.IntRange(1, LONGEST), default=LONGEST, show_default=True, help="Lifetime in seconds.")
@click.option("--json", "as_json", is_flag=True, help='One line of JSON: {"token", "expires_at", "events_url"}.')
def token(id: str, ttl: int, as_json: bool) -> None:  # noqa: A002
    """Create a token with which a browser can read generation ID, and nothing else, until the token expires."""
    with open_client() as client:
        created = client.post(f"/v1/generations/{check_id(id)}/token", {"ttl_seconds": ttl})
        url = client.url + created["events_url"]
    expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(created["expires_at"]))
    columns = [("token", created["token"]), ("expires", expires), ("url", url)]
    lines = [json_line(created)] if as_json else table(columns)
    for line in lines:
        click.echo(line)
