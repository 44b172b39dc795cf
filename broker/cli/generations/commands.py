"""Commands that send one request to a gateway and print the answer."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

import click

from broker.auth.stream_tokens import LONGEST
from broker.cli.completion import ids_to_complete, models_to_complete
from broker.cli.generations.follow import print_events
from broker.cli.options import examples, json_line, open_client
from broker.cli.output import harmless
from broker.cli.tables import HEADINGS, facts, one_line, row, table
from broker.events import STATUSES
from broker.gateway_client.client import Json
from broker.ids import check_id


@click.command(
    short_help="Enqueue a prompt.",
    epilog=examples(
        'tokencast enqueue "Explain the GIL in CPython."',
        "tokencast enqueue --follow < README.md",
        "tokencast enqueue --system 'Answer in one word.' --metadata order=17 --json 'Is it raining?'",
        "id=$(tokencast enqueue hello) && tokencast follow $id",
    ),
)
@click.argument("prompt", required=False)
@click.option("--model", shell_complete=models_to_complete, help="Model; default: the first that the gateway lists.")
@click.option("--system", help="System message, placed before the prompt.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="Metadata of the generation; repeatable.")
@click.option("--idempotency-key", help="Key that makes a repeated request return the same generation.")
@click.option("--follow", "then_follow", is_flag=True, help="Print the text as it arrives; the id goes to stderr.")
@click.option("--json", "as_json", is_flag=True, help="Print the generation as JSON; with --follow, its events.")
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
    content = read_prompt(prompt)
    messages = [{"role": "user", "content": content}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
    pairs = parse_metadata(metadata)
    with open_client() as client:
        body: Json = {"model": model or client.default_model(), "messages": messages}
        if pairs:
            body["metadata"] = pairs
        generation = client.post("/v1/generations", body, headers)
        if not then_follow:
            click.echo(json_line(generation) if as_json else generation["id"])
            return
        click.echo(generation["id"], err=True)
        print_events(client, [generation["id"]], None, as_json)


@click.command(
    epilog=examples(
        "tokencast ls --status in_progress",
        "tokencast ls --limit 1000 | head",
        '''tokencast ls --json | python3 -c "import json, sys; print(json.loads(next(sys.stdin))['id'])"''',
    )
)
@click.option("--status", type=click.Choice(STATUSES), help="Only generations with this status.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Maximum number of generations.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON per generation, without its text.")
def ls(status: str | None, limit: int, as_json: bool) -> None:
    """List the newest generations."""
    with open_client() as client:
        if as_json:
            for generation in client.generations(status, limit):
                click.echo(json_line(generation))
            return
        generations = list(client.generations(status, limit))
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


@click.command(short_help="Cancel a generation.", epilog=examples("tokencast cancel ID", "tokencast cancel ID --json"))
@click.argument("id", shell_complete=ids_to_complete)
@click.option("--json", "as_json", is_flag=True, help="Print the generation as JSON.")
def cancel(id: str, as_json: bool) -> None:  # noqa: A002
    """Cancel generation ID and print its status. A generation that has ended does not change."""
    with open_client() as client:
        generation = client.post(f"/v1/generations/{check_id(id)}/cancel")
    click.echo(json_line(generation) if as_json else generation["status"])


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


def read_prompt(argument: str | None) -> str:
    """Return the argument, or standard input without its trailing line break. UsageError if there is no valid text."""
    if argument in (None, "-") and sys.stdin.isatty():
        raise click.UsageError("PROMPT is required, as an argument or on standard input.")
    try:
        text = sys.stdin.buffer.read().decode().rstrip("\r\n") if argument in (None, "-") else str(argument)
        text.encode()
    except UnicodeError:
        raise click.UsageError("The prompt is not valid UTF-8.") from None
    if not text:
        raise click.UsageError("The prompt is empty.")
    return text


def parse_metadata(metadata: Iterable[str]) -> dict[str, str]:
    """Parse the values of `--metadata`."""
    pairs: dict[str, str] = {}
    for pair in metadata:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE.", param_hint="--metadata")
        pairs[key] = value
    return pairs
