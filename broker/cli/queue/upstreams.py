"""The commands `upstreams` and `upstreams set`."""

from __future__ import annotations

import time
from typing import Any

import click
from click.shell_completion import CompletionItem

from broker.chunks import Json
from broker.cli.completion import upstreams_to_complete
from broker.cli.options import examples, json_line, open_client
from broker.cli.tables import table, until

_HEADINGS = ("UPSTREAM", "STATE", "CALLS", "LIMIT", "LEARNED", "RPM", "TPM", "WAITING", "NEXT TRY")
_STATES = {"closed": "up", "open": "down", "half_open": "trying"}


class _Limit(click.ParamType[int | str]):
    """A number from 1, or `none`."""

    name = "limit"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        text = str(value)
        if text != "none" and not (text.isascii() and text.isdigit() and int(text) > 0):
            self.fail(f"{text!r} is not a number from 1, or `none`.", param, ctx)
        return text if text == "none" else int(text)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        del ctx, param
        return [CompletionItem("none")] if "none".startswith(incomplete) else []


@click.group(
    invoke_without_command=True,
    short_help="Show or change the upstreams.",
    epilog=examples(
        "tokencast upstreams",
        "tokencast upstreams --json",
        "tokencast upstreams set default --concurrency 20 --rpm 500",
        "tokencast upstreams set default --concurrency none --rpm none --tpm none",
    ),
)
@click.option("--json", "as_json", is_flag=True, help="One line of JSON per upstream.")
@click.pass_context
def upstreams(context: click.Context, as_json: bool) -> None:
    """Show the upstreams: their state, calls, limits, and the generations that wait for them.

    CALLS: calls now. LIMIT: calls at once, as configured or set. LEARNED: calls at once that it is known to take. RPM
    and TPM: requests and tokens per minute.
    """
    if context.invoked_subcommand is not None:
        if as_json:
            raise click.UsageError("Put --json after `set`.")
        return
    with open_client() as client:
        found = [one.raw for one in client.upstreams()]
    _print(found, as_json)


@upstreams.command(
    "set",
    short_help="Change limits of an upstream.",
    epilog=examples(
        "tokencast upstreams set default --concurrency 20",
        "tokencast upstreams set default --concurrency none --tpm 90000 --json",
    ),
)
@click.argument("name", shell_complete=upstreams_to_complete)
@click.option("--concurrency", "max_concurrency", metavar="N|none", type=_Limit(), help="Maximum calls at once.")
@click.option("--rpm", "requests_per_minute", metavar="N|none", type=_Limit(), help="Maximum requests per minute.")
@click.option("--tpm", "tokens_per_minute", metavar="N|none", type=_Limit(), help="Maximum tokens per minute.")
@click.option("--json", "as_json", is_flag=True, help="Print the upstream as JSON.")
def set_limits(name: str, as_json: bool, **limits: int | str | None) -> None:
    """Change limits of upstream NAME at run time; `none` restores the configured one.

    Needs a key with the role operator.
    """
    given = {key: value for key, value in limits.items() if value is not None}
    patch = {key: None if value == "none" else int(value) for key, value in given.items()}
    if not patch:
        raise click.UsageError("Name a limit: --concurrency, --rpm or --tpm.")
    with open_client() as client:
        changed = client.update_upstream(name, **patch).raw
    _print([changed], as_json)


def _print(found: list[Json], as_json: bool) -> None:
    for line in map(json_line, found) if as_json else table(upstream_rows(found, time.time())):
        click.echo(line)


def upstream_rows(upstreams: list[Json], now: float) -> list[tuple[str, ...]]:
    """Return the rows of a table of upstreams, with its heading."""
    return [_HEADINGS, *(_row(one, now) for one in upstreams)]


def _row(one: Json, now: float) -> tuple[str, ...]:
    limits = ("max_concurrency", "learned_concurrency", "requests_per_minute", "tokens_per_minute")
    shown = ["-" if one[name] is None else str(one[name]) for name in limits]
    known = (one["name"], _state(one, now), str(one["in_flight"]))
    return *known, *shown, str(one["waiting"]), until(one["retry_at"], now)


def _state(one: Json, now: float) -> str:
    if one["paused"]:
        return "paused"
    if one["circuit"] == "closed" and (one["retry_at"] or 0.0) > now:
        return "busy"
    return _STATES.get(one["circuit"], one["circuit"])
