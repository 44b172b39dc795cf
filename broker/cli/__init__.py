"""The `tokencast` command: client commands that talk to a gateway, and commands that become or start the processes.

Imports `gateway_client`, `dev` and the packages below them. Start with `main.py`.
"""

from broker.cli.main import cli, main

__all__ = ["cli", "main"]
