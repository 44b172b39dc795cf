"""Entry point of the `tokencast` command, and of each process that it starts.

The packages of this distribution have common names: `broker`, `worker`, `api`. A user's folder of the same name in the
current directory or on PYTHONPATH precedes them on `sys.path`, and would be run in their place. The name of this module
is that of the distribution, so nothing hides it; it makes Python import the three from the directory next to itself.

    python -P tokencast_broker.py MODULE [ARGUMENT …]      runs `MODULE.__main__`, as `python -m MODULE` would
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import NoReturn

HOME = Path(__file__).resolve().parent
PACKAGES = frozenset({"broker", "worker", "api"})


class OwnPackages:
    """An import hook that looks for our packages in HOME alone. Everything else is imported as usual."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(HOME)], target) if name in PACKAGES else None


def main() -> NoReturn:
    """The `tokencast` command."""
    sys.meta_path.insert(0, OwnPackages)
    from broker import cli

    cli.main()


def run_module() -> int | None:
    """The module that the first argument names, with the arguments that follow it."""
    sys.meta_path.insert(0, OwnPackages)
    del sys.argv[0]
    return import_module(f"{sys.argv[0]}.__main__").main()


if __name__ == "__main__":
    sys.exit(run_module())
