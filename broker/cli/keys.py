"""The command that makes keys. Needs no gateway: whoever runs one decides who is let in."""

from __future__ import annotations

import hashlib
import secrets

import click

from broker.cli.options import examples, json_line
from broker.settings.api_keys import is_tenant


@click.command("key", short_help="Make an API key.", epilog=examples("tokencast key anna", "tokencast key anna --json"))
@click.argument("tenant")
@click.option("--json", "as_json", is_flag=True, help='{"key", "entry"}')
def new_key(tenant: str, as_json: bool) -> None:
    """Make a key for TENANT. It is shown this once; the gateway gets the entry, which is no secret, in
    TOKENCAST_API_KEYS."""
    if not is_tenant(tenant):
        raise click.BadParameter("a tenant is letters and digits.", param_hint="TENANT")
    made = "tck_" + secrets.token_urlsafe(32)  # 256 bits: there is nothing to guess, so a plain hash keeps it
    entry = f"{tenant}:{hashlib.sha256(made.encode()).hexdigest()}"
    click.echo(json_line({"key": made, "entry": entry}) if as_json else f"key    {made}\nentry  {entry}")
