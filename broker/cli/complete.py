"""Shell completion: the scripts, and what the gateway knows to complete. On a key press nobody waits for long, and
nobody reads an error."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import click
from click.shell_completion import BashComplete, CompletionItem, FishComplete, ZshComplete

from broker.cli.shared import examples
from broker.cli.tables import duration, one_line
from broker.client import Client, Json
from broker.settings import ClientSettings, load

COMPLETE = "_TOKENCAST_COMPLETE"  # the variable by which a script asks
_SHELLS = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
_WITHIN = 1.0  # seconds
_OFFERED = 50  # generations, the newest
_PLAIN = re.compile(r"[\w.:/@+-]+", re.ASCII)  # a shell takes what is completed as it is


@click.command(
    short_help="Print a shell's completion script.",
    epilog=examples(
        'eval "$(tokencast completion bash)"                                      # in ~/.bashrc',
        'eval "$(tokencast completion zsh)"                                       # in ~/.zshrc, behind compinit',
        "tokencast completion fish > ~/.config/fish/completions/tokencast.fish    # once",
    ),
)
@click.argument("shell", type=click.Choice(list(_SHELLS)))
def completion(shell: str) -> None:
    """Print the script that lets SHELL complete commands, options, statuses, models and generation ids."""
    root = click.get_current_context().find_root().command
    click.echo(_SHELLS[shell](root, {}, "tokencast", COMPLETE).source(), nl=False)


def ids_to_complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    del context, parameter
    now = time.time()
    try:
        with _hasty_client() as client:
            return [
                CompletionItem(
                    one["id"], help=one_line(f"{one['status']} {one['model']} {duration(now - one['created_at'])}")
                )
                for one in client.generations(None, _OFFERED)
                if one["id"].startswith(incomplete)
            ]
    except Exception:  # whatever is wrong, here is not the place to say so
        return []


def models_to_complete(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    del context, parameter
    try:
        with _hasty_client() as client:
            return [CompletionItem(name) for name in _harmless(client.models()) if name.startswith(incomplete)]
    except Exception:  # whatever is wrong, here is not the place to say so
        return []


def _harmless(models: list[Json]) -> Iterator[str]:
    return (model["id"] for model in models if _PLAIN.fullmatch(model["id"]))


def _hasty_client() -> Client:
    return Client(load(ClientSettings), within=_WITHIN)
