"""The installed distribution brings its types: a program that uses it passes pyright and mypy, both strict."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from broker.embedded import EmbeddedRedis
from tests.packaging.conftest import Installed

PROGRAM = Path(__file__).with_name("program.py")
MISTAKE = """\
from broker import connect


async def main() -> None:
    async with connect("redis://127.0.0.1") as broker:
        generation = await broker.enqueue({})
        print(generation.id + 1)
"""


def check(installed: Installed, tool: str, program: Path, work: Path) -> subprocess.CompletedProcess[str]:
    (work / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict", "include": [str(program)]}))
    commands = {
        "pyright": ("pyright", "--project", work, "--pythonpath", installed.python),
        "mypy": ("mypy", "--strict", "--python-executable", installed.python, "--cache-dir", os.devnull, program),
    }
    return installed.run(sys.executable, "-m", *commands[tool], cwd=work)


@pytest.mark.parametrize("tool", ["pyright", "mypy"])
def test_a_program_passes(installed: Installed, tmp_path: Path, tool: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.read_text("utf-8"), "utf-8")
    done = check(installed, tool, program, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("tool", ["pyright", "mypy"])
def test_a_mistake_is_found(installed: Installed, tmp_path: Path, tool: str) -> None:
    """Without `py.typed` everything would be Any, and nothing a mistake."""
    program = tmp_path / "program.py"
    program.write_text(MISTAKE, "utf-8")
    done = check(installed, tool, program, tmp_path)
    assert done.returncode == 1
    assert re.search(r'program.py:7:.*"str"', done.stdout), done.stdout


async def test_the_program_runs(installed: Installed, redis: EmbeddedRedis, tmp_path: Path) -> None:
    done = await asyncio.to_thread(installed.run, installed.python, PROGRAM, redis.url, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("cancelled True")


def test_every_package_says_that_it_has_types(installed: Installed) -> None:
    for name in ("api", "broker", "worker"):
        assert (installed.packages / name / "py.typed").exists()
