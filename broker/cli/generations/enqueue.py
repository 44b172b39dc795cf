"""The `enqueue` command."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any, BinaryIO, cast, get_args

import click

from broker.chunks import Json
from broker.cli.completion import groups_to_complete, models_to_complete
from broker.cli.generations.follow import print_events
from broker.cli.options import examples, json_line, open_client
from broker.cli.times import Duration, Moment
from broker.errors import InvalidRequest
from broker.request.options import Policy
from tokencast_client import Client


@click.command(
    short_help="Enqueue a prompt.",
    epilog=examples(
        'tokencast enqueue "Explain the GIL in CPython."',
        "tokencast enqueue --follow < README.md",
        "tokencast enqueue --system 'Answer in one word.' --metadata order=17 --json 'Is it raining?'",
        "tokencast enqueue --param temperature=0.2 --param 'stop=[\"\\n\"]' 'Name a colour.'",
        "tokencast enqueue --priority 1 --group nightly --queue-timeout 10m 'Urgent.'",
        "tokencast enqueue --delay 2h --ttl 7d 'Later.'",
        """echo '{"messages": [{"role": "user", "content": "Hi"}]}' | tokencast enqueue --body -""",
        """echo '[{"role": "user", "content": "Hi"}]' | tokencast enqueue --messages -""",
        "id=$(tokencast enqueue hello) && tokencast follow $id",
    ),
)
@click.argument("prompt", required=False)
@click.option("--model", shell_complete=models_to_complete, help="Model; default: the first that the gateway lists.")
@click.option("--system", help="System message, placed before the prompt.")
@click.option("--body", "file", type=click.File("rb"), metavar="FILE", help="Request body (JSON) instead of PROMPT.")
@click.option(
    "--messages", "history", type=click.File("rb"), metavar="FILE", help="Messages (JSON list); PROMPT follows them."
)
@click.option("--param", multiple=True, metavar="KEY=JSON", help="Field of the request body; repeatable.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="Metadata of the generation; repeatable.")
@click.option("--priority", type=click.IntRange(1, 5), help="1 is first, 5 last; default: 3.")
@click.option("--delay", "delay_seconds", type=Duration(), help="Do not start for this long: 90, 30s, 15m, 2h.")
@click.option("--run-at", type=Moment(ahead=True), help="Do not start before this time: ISO 8601 or unix seconds.")
@click.option("--queue-timeout", type=Duration(), help="Fail if the generation has waited for longer.")
@click.option("--group", shell_complete=groups_to_complete, help="Group of the generation.")
@click.option("--ttl", "ttl_seconds", type=Duration(), help="Time for which the generation is kept after its end.")
@click.option(
    "--on-upstream-error",
    type=click.Choice(get_args(Policy)),
    help="What to do if the answer breaks off after its first token; default: fail.",
)
@click.option("--webhook", metavar="URL", help="URL to call when the generation has ended.")
@click.option("--idempotency-key", help="Key that makes a repeated request return the same generation.")
@click.option("--follow", "then_follow", is_flag=True, help="Print the text as it arrives; the id goes to stderr.")
@click.option("--json", "as_json", is_flag=True, help="Print the generation as JSON; with --follow, its events.")
def enqueue(
    prompt: str | None,
    model: str | None,
    system: str | None,
    file: BinaryIO | None,
    history: BinaryIO | None,
    param: tuple[str, ...],
    metadata: tuple[str, ...],
    idempotency_key: str | None,
    then_follow: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Enqueue PROMPT, or standard input, and print the generation's id.

    With --body the request is the JSON object of a file (`-`: standard input); other options take precedence over its
    fields. With --messages the conversation so far is the JSON list of a file.
    """
    if options["delay_seconds"] is not None and options["run_at"] is not None:
        raise click.UsageError("Use either --delay or --run-at.")
    body: Json = _read_body(file, prompt, system, history) if file else {"messages": _messages(prompt, system, history)}
    body.update(parse_parameters(param))
    if pairs := parse_metadata(metadata):
        body["metadata"] = {**_object(body, "metadata"), **pairs}
    with open_client() as client:
        if model or "model" not in body:
            body["model"] = model or default_model(client)
        generation = client.enqueue(body, idempotency_key=idempotency_key, **options)
        if not then_follow:
            click.echo(json_line(generation.raw) if as_json else generation.id)
            return
        click.echo(generation.id, err=True)
        print_events(client, [generation.id], None, as_json)


def default_model(client: Client) -> str:
    """Return the first model that the gateway lists by name."""
    named = [model for model in client.models() if not set(model) & set("*?[")]
    if not named:
        raise InvalidRequest(f"The gateway at {client.base_url} lists no model; choose one with --model.")
    return named[0]


def _messages(prompt: str | None, system: str | None, history: BinaryIO | None) -> list[Json]:
    """Return the system message, those of a file, and the prompt. Without a file, the prompt can be standard input."""
    before = [{"role": "system", "content": system}] if system else []
    if history is None:
        return [*before, {"role": "user", "content": read_prompt(prompt)}]
    messages = _read_json(history, "--messages")
    if not isinstance(messages, list):
        raise click.BadParameter("not a JSON list.", param_hint="--messages")
    after = [] if prompt is None else [{"role": "user", "content": read_prompt(prompt)}]
    return [*before, *cast("list[Json]", messages), *after]


def _read_body(file: BinaryIO, prompt: str | None, system: str | None, history: BinaryIO | None) -> Json:
    """Return the object in a file. UsageError, BadParameter."""
    if prompt is not None or system is not None or history is not None:
        raise click.UsageError("--body excludes PROMPT, --system and --messages.")
    body = _read_json(file, "--body")
    if not isinstance(body, dict):
        raise click.BadParameter("not a JSON object.", param_hint="--body")
    return cast(Json, body)


def _read_json(file: BinaryIO, option: str) -> object:
    try:
        return json.loads(file.read())
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"not valid JSON: {error}", param_hint=option) from None


def _object(body: Json, name: str) -> Json:
    """Return an object in a body. If it is something else, it is empty: the options replace it."""
    value = body.get(name)
    return cast(Json, value) if isinstance(value, dict) else {}


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
    return dict(_pair(pair, "VALUE", "--metadata") for pair in metadata)


def parse_parameters(parameters: Iterable[str]) -> Json:
    """Parse the values of `--param`, each with a JSON value."""
    fields: Json = {}
    for parameter in parameters:
        key, text = _pair(parameter, "JSON", "--param")
        try:
            fields[key] = json.loads(text)
        except (ValueError, RecursionError):
            hint = f"{text!r} is not JSON; a string needs quotes: '{key}=\"{text}\"'."
            raise click.BadParameter(hint, param_hint="--param") from None
    return fields


def _pair(text: str, value: str, option: str) -> tuple[str, str]:
    key, equals, rest = text.partition("=")
    if not key or not equals:
        raise click.BadParameter(f"{text!r} is not KEY={value}.", param_hint=option)
    return key, rest
