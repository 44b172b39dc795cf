"""The `key` command. To make a key it needs no gateway: the operator adds the printed entry to its settings."""

from __future__ import annotations

import hashlib
import secrets
import time

import click

from broker.chunks import Json
from broker.cli.options import examples, json_line, open_client
from broker.cli.tables import duration, table
from broker.settings.api_keys import ROLES, ApiKey, Role, format_end, is_tenant, parse_end


@click.command(
    "key",
    short_help="Create an API key, or list the keys.",
    epilog=examples(
        "tokencast key anna",
        "tokencast key anna --json",
        "tokencast key ops --role operator",
        "tokencast key guest --expires 2030-01-31",
        "tokencast key --list",
    ),
)
@click.argument("tenant", required=False)
@click.option(
    "--role",
    type=click.Choice(ROLES),
    default=ROLES[0],
    help="operator: sees all tenants and controls the queue; read: changes nothing.",
)
@click.option("--expires", metavar="DATE", help="Last day of its validity, UTC, or a time: 2027-01-31.")
@click.option("--list", "listed", is_flag=True, help="Show the keys of the gateway and their last uses; for operators.")
@click.option("--json", "as_json", is_flag=True, help='One line of JSON: {"key", "entry"}; with --list, one per key.')
def new_key(tenant: str | None, role: Role, expires: str | None, listed: bool, as_json: bool) -> None:
    """Create an API key for TENANT and print it, with the entry for the gateway's TOKENCAST_API_KEYS.

    The key is shown only once. The entry holds its SHA-256 hash and is not secret. KEY in the list is the beginning of
    that hash.
    """
    if listed:
        if tenant is not None:
            raise click.UsageError("--list takes no TENANT.")
        _list(as_json)
        return
    if tenant is None:
        raise click.UsageError("Missing argument 'TENANT'.")
    if not is_tenant(tenant):
        raise click.BadParameter("a tenant name consists of letters and digits.", param_hint="TENANT")
    try:
        end = parse_end(expires) if expires else None
    except (ValueError, OverflowError):
        raise click.BadParameter("is not a date or a time, as in 2027-01-31.", param_hint="--expires") from None
    key = "tck_" + secrets.token_urlsafe(32)  # 256 random bits cannot be guessed, so a plain hash is enough
    entry = ApiKey(tenant, role, end).entry(hashlib.sha256(key.encode()).hexdigest())
    click.echo(json_line({"key": key, "entry": entry}) if as_json else f"key    {key}\nentry  {entry}")


def _list(as_json: bool) -> None:
    with open_client() as client:
        found: list[Json] = client.request("GET", "/v1/keys")["data"]
    if as_json:
        for one in found:
            click.echo(json_line(one))
        return
    now = time.time()
    rows: list[tuple[str, ...]] = [("KEY", "TENANT", "ROLE", "EXPIRES", "LAST USE")]
    for one in found:
        end, used = one["expires_at"], one["last_used_at"]
        until = "-" if end is None else format_end(end) + (" (expired)" if end <= now else "")
        rows.append(
            (one["key"], one["tenant"], one["role"], until, "-" if used is None else f"{duration(now - used)} ago")
        )
    for line in table(rows):
        click.echo(line)
