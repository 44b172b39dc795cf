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


def use_own_packages() -> None:
    """Import our packages from HOME from now on. Exits with status 2 if one of another origin is imported already, as
    by a `sitecustomize` module."""
    for name in sorted(PACKAGES & sys.modules.keys()):
        origin: str | None = getattr(sys.modules[name], "__file__", None)  # a folder without `__init__.py` has none
        if origin is None or HOME not in Path(origin).resolve().parents:
            sys.stderr.write(f"tokencast: Python has already imported another package `{name}`: {origin}\n")
            sys.exit(2)
    sys.meta_path.insert(0, OwnPackages)


def main() -> NoReturn:
    """The `tokencast` command."""
    use_own_packages()
    from broker import cli

    cli.main()


def run_module() -> int | None:
    """The module that the first argument names, with the arguments that follow it."""
    use_own_packages()
    del sys.argv[0]
    return import_module(f"{sys.argv[0]}.__main__").main()


if __name__ == "__main__":
    sys.exit(run_module())
