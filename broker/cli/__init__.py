"""The `tokencast` command."""

from broker.cli.main import cli, main

__all__ = ["cli", "main"]
