"""The `key` command. It needs no gateway: the operator adds the printed entry to the gateway's settings."""

from __future__ import annotations

import hashlib
import secrets

import click

from broker.cli.options import examples, json_line
from broker.settings.api_keys import ROLES, ApiKey, Role, is_tenant, parse_end


@click.command(
    "key",
    short_help="Create an API key.",
    epilog=examples(
        "tokencast key anna",
        "tokencast key anna --json",
        "tokencast key ops --role operator",
        "tokencast key guest --expires 2030-01-31",
    ),
)
@click.argument("tenant")
@click.option(
    "--role",
    type=click.Choice(ROLES),
    default=ROLES[0],
    help="operator: sees all tenants and controls the queue; read: changes nothing.",
)
@click.option("--expires", metavar="DATE", help="Last day of its validity, UTC, or a time: 2027-01-31.")
@click.option("--json", "as_json", is_flag=True, help='One line of JSON: {"key", "entry"}.')
def new_key(tenant: str, role: Role, expires: str | None, as_json: bool) -> None:
    """Create an API key for TENANT and print it, with the entry for the gateway's TOKENCAST_API_KEYS.

    The key is shown only once. The entry holds its SHA-256 hash and is not secret.
    """
    if not is_tenant(tenant):
        raise click.BadParameter("a tenant name consists of letters and digits.", param_hint="TENANT")
    try:
        end = parse_end(expires) if expires else None
    except (ValueError, OverflowError):
        raise click.BadParameter("is not a date or a time, as in 2027-01-31.", param_hint="--expires") from None
    key = "tck_" + secrets.token_urlsafe(32)  # 256 random bits cannot be guessed, so a plain hash is enough
    entry = ApiKey(tenant, role, end).entry(hashlib.sha256(key.encode()).hexdigest())
    click.echo(json_line({"key": key, "entry": entry}) if as_json else f"key    {key}\nentry  {entry}")
