"""The commands `queue`, `pause` and `resume`."""

from __future__ import annotations

import time
from collections.abc import Iterator

import click

from broker.chunks import Json
from broker.cli.completion import upstreams_to_complete
from broker.cli.options import examples, json_line, open_client
from broker.cli.queue.upstreams import upstream_rows
from broker.cli.tables import duration, table, until
from tokencast_client import Client, Queue

_READ = 1000  # waiting generations that are read to find the next ones: the list begins with the newest


@click.command(
    short_help="Show the queue.",
    epilog=examples("tokencast queue", "tokencast queue --limit 3", "tokencast queue --json"),
)
@click.option("--limit", type=click.IntRange(0), default=10, show_default=True, help="Maximum number of next ones.")
@click.option("--json", "as_json", is_flag=True, help='One line of JSON: {"upstreams", "queue", "next"}.')
def queue(limit: int, as_json: bool) -> None:
    """Show the upstreams, how many generations wait and why, and the next in line.

    The numbers are those of all tenants; the next in line are the caller's.
    """
    with open_client() as client:
        upstreams, state = [one.raw for one in client.upstreams()], client.queue().raw
        following, complete = _next_in_line(client, limit, state["depth"])
    if as_json:
        click.echo(json_line({"upstreams": upstreams, "queue": state, "next": following}))
        return
    now = time.time()
    sections = [upstream_rows(upstreams, now), _level_rows(state, now)]
    for rows in sections:
        if len(rows) > 1:
            for line in table(rows):
                click.echo(line)
            click.echo()
    for line in _summary(state):
        click.echo(line)
    if following:
        click.echo("\nNext in line:" if complete else f"\nNext in line, of the newest {_READ}:")
        for line in table(_next_rows(following, now)):
            click.echo(line)


def _next_in_line(client: Client, limit: int, depth: int) -> tuple[list[Json], bool]:
    """Return the caller's waiting generations with the lowest positions, and whether all were read."""
    if not limit or not depth:
        return [], True
    waiting = [one.raw for one in client.list(status="queued", limit=_READ)]
    placed = [one for one in waiting if one["queue"] and one["queue"]["position"] is not None]
    placed.sort(key=lambda one: (one["queue"]["position"], one["priority"], one["created_at"]))
    return placed[:limit], len(waiting) < _READ


def _summary(state: Json) -> Iterator[str]:
    by_priority = ", ".join(f"{n} of priority {level}" for level, n in sorted(state["by_priority"].items()))
    by_reason = ", ".join(f"{n} {reason}" for reason, n in sorted(state["by_reason"].items()))
    counted = [part for part in (by_priority, by_reason) if part]
    yield f"{state['depth']} waiting" + (f": {'; '.join(counted)}" if counted else "")
    if state["paused"]:
        yield f"paused: {', '.join(state['paused'])}"


def _level_rows(state: Json, now: float) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("PRIORITY", "UPSTREAMS", "WAITING", "REASON", "NEXT TRY")]
    for level in sorted(state["levels"], key=lambda one: (one["priority"], one["upstreams"])):
        named = (str(level["priority"]), ",".join(level["upstreams"]), str(level["waiting"]), level["reason"])
        rows.append((*named, until(level["retry_at"], now)))
    return rows


def _next_rows(generations: list[Json], now: float) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("POSITION", "ID", "PRIORITY", "MODEL", "AGE", "REASON")]
    for one in generations:
        known, age = one["queue"], duration(now - one["created_at"])
        rows.append((str(known["position"]), one["id"], str(one["priority"]), one["model"], age, known["reason"]))
    return rows


_UPSTREAM = click.option("--upstream", shell_complete=upstreams_to_complete, help="Only calls to this upstream.")
_TENANT = click.option("--tenant", help="Only generations of this tenant.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the state of the queue as JSON.")


@click.command(
    short_help="Pause the queue.",
    epilog=examples("tokencast pause", "tokencast pause --upstream default", "tokencast pause --tenant anna --json"),
)
@_UPSTREAM
@_TENANT
@_JSON
def pause(upstream: str | None, tenant: str | None, as_json: bool) -> None:
    """Start no further generation, of all or of one upstream or tenant. Running ones continue; new ones wait.

    Needs a key with the role operator.
    """
    with open_client() as client:
        _print_pauses(client.pause(upstream=upstream, tenant=tenant), as_json)


@click.command(
    short_help="Resume the queue.",
    epilog=examples("tokencast resume", "tokencast resume --upstream default", "tokencast resume --tenant anna --json"),
)
@_UPSTREAM
@_TENANT
@_JSON
def resume(upstream: str | None, tenant: str | None, as_json: bool) -> None:
    """End a pause: the one of all generations, or the one of an upstream or a tenant.

    Needs a key with the role operator.
    """
    with open_client() as client:
        _print_pauses(client.resume(upstream=upstream, tenant=tenant), as_json)


def _print_pauses(state: Queue, as_json: bool) -> None:
    click.echo(json_line(state.raw) if as_json else f"paused: {', '.join(state.paused) or 'nothing'}")
