"""Shell completion: the scripts, and the ids and models that the gateway offers.

A key press must not wait for long, and no error may appear in the middle of a command line.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import click
from click.shell_completion import BashComplete, CompletionItem, FishComplete, ZshComplete

from broker.cli.options import examples, make_client
from broker.cli.tables import duration, one_line
from tokencast_client import Client

COMPLETE = "_TOKENCAST_COMPLETE"  # environment variable with which a script requests completions
_SHELLS = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
_TIMEOUT = 1.0  # seconds
_OFFERED = 50  # newest generations
Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]
_PLAIN = re.compile(r"[\w.:/@+-]+", re.ASCII)  # shells insert a completion without quoting


@click.command(
    short_help="Print a shell completion script.",
    epilog=examples(
        'eval "$(tokencast completion bash)"                                      # in ~/.bashrc',
        'eval "$(tokencast completion zsh)"                                       # in ~/.zshrc, after compinit',
        "tokencast completion fish > ~/.config/fish/completions/tokencast.fish    # once",
    ),
)
@click.argument("shell", type=click.Choice(list(_SHELLS)))
def completion(shell: str) -> None:
    """Print a script that makes SHELL complete commands, options, statuses, models and generation ids."""
    root = click.get_current_context().find_root().command
    click.echo(_SHELLS[shell](root, {}, "tokencast", COMPLETE).source(), nl=False)


def _offered(find: Callable[[Client], Iterator[CompletionItem[str]]]) -> Completer:
    """Make a completer from a function that lists candidates; it offers those that start with the typed text."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        del context, parameter
        try:
            with make_client(_TIMEOUT) as client:
                return [item for item in find(client) if item.value.startswith(incomplete)]
        except Exception:  # the command itself reports what is wrong
            return []

    return complete


@_offered
def ids_to_complete(client: Client) -> Iterator[CompletionItem[str]]:
    now = time.time()
    for one in client.list(limit=_OFFERED):
        about = f"{one.status} {one.model} {duration(now - one.created_at)}"
        yield CompletionItem(one.id, help=one_line(about))


@_offered
def models_to_complete(client: Client) -> Iterator[CompletionItem[str]]:
    return (CompletionItem(model) for model in client.models() if _PLAIN.fullmatch(model))


@_offered
def groups_to_complete(client: Client) -> Iterator[CompletionItem[str]]:
    groups = dict.fromkeys(one.group for one in client.list(limit=_OFFERED) if one.group)
    return (CompletionItem(group) for group in groups if _PLAIN.fullmatch(group))


@_offered
def codes_to_complete(client: Client) -> Iterator[CompletionItem[str]]:
    failed = client.list(limit=_OFFERED, status="failed")
    codes = dict.fromkeys(str(one.error["code"]) for one in failed if one.error)
    return (CompletionItem(code) for code in codes if _PLAIN.fullmatch(code))


@_offered
def upstreams_to_complete(client: Client) -> Iterator[CompletionItem[str]]:
    return (CompletionItem(one.name) for one in client.upstreams() if _PLAIN.fullmatch(one.name))
