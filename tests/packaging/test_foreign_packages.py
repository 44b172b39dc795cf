"""A user's own `broker/`, `worker/` and `api/` folders are not run instead of ours."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

import pytest

from broker import __version__
from tests.packaging.conftest import Installed
from tests.support import ROOT, Service, clean_environment

FOREIGN_OUTPUT = "foreign code ran\n"
FOREIGN = f"print({FOREIGN_OUTPUT!r}, end='')\n"


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder with packages of the same names as ours."""
    for name in ("broker", "worker", "api"):
        (tmp_path / name).mkdir()
        for file in ("__init__.py", "__main__.py"):
            (tmp_path / name / file).write_text(FOREIGN, "utf-8")
    return tmp_path


@pytest.mark.parametrize("name", ["api", "worker", "upstream-sim"])
def test_the_command_starts_our_processes(installed: Installed, foreign: Path, name: str) -> None:
    done = installed.run(installed.command, name, "--help", cwd=foreign, PYTHONPATH=str(foreign))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: tokencast {name} ")


def test_the_command_runs_our_code(installed: Installed, foreign: Path) -> None:
    done = installed.run(installed.command, "--version", cwd=foreign, PYTHONPATH=str(foreign))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"tokencast {__version__}\n", "")


def test_a_foreign_package_that_is_already_imported_is_named(installed: Installed, foreign: Path) -> None:
    (foreign / "sitecustomize.py").write_text("import worker\n", "utf-8")
    done = installed.run(installed.command, "worker", "--help", cwd=foreign, PYTHONPATH=str(foreign))
    assert (done.returncode, done.stdout) == (2, FOREIGN_OUTPUT)
    where = foreign / "worker" / "__init__.py"
    assert done.stderr == f"tokencast: Python has already imported another package `worker`: {where}\n"


async def test_dev_starts_only_our_processes(installed: Installed, foreign: Path) -> None:
    """The simulated upstream, a worker, and a gateway of two processes."""
    environment = installed.environment(PYTHONPATH=str(foreign), PORT="0", TOKENCAST_PROCESSES="2")
    pipes = {"stdin": DEVNULL, "stdout": PIPE, "stderr": PIPE}
    process = await asyncio.create_subprocess_exec(installed.command, "dev", cwd=foreign, env=environment, **pipes)
    everything = Service(process)
    try:
        await everything.says("Ctrl-C stops everything")
        await everything.says("listening on http", times=2)  # a process that stops before that does not say it
        everything.send(signal.SIGINT)
        assert await everything.wait() == 0
    finally:
        await everything.stop()
    assert everything.output.count("listening on http") == 2
    assert "foreign" not in everything.output


@pytest.mark.parametrize("at_home", [True, False])
async def test_a_checkout_runs_its_own_packages(foreign: Path, at_home: bool) -> None:
    """`python -m broker` imports the package of the current directory, so only the other two are foreign here."""
    (foreign / "broker").rename(foreign / "other")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "broker", "worker", "--help", cwd=ROOT if at_home else foreign,
        env=clean_environment(PYTHONPATH=f"{foreign}{os.pathsep}{ROOT}"), stdin=DEVNULL, stdout=PIPE, stderr=PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert out.startswith(b"usage: tokencast worker ")
