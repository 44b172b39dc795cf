"""The installed distribution is typed: a program that uses it passes pyright and mypy in strict mode."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from broker.dev.embedded_redis import EmbeddedRedis
from tests.packaging.conftest import Installed
from tests.support import Gateway

PROGRAM, CLIENT_PROGRAM = (Path(__file__).with_name(name) for name in ("program.py", "client_program.py"))
MISTAKE = """\
from broker import connect


async def main() -> None:
    async with connect("redis://127.0.0.1") as broker:
        generation = await broker.enqueue({})
        print(generation.id + 1)
"""
CLIENT_MISTAKE = """\
from tokencast_client import AsyncClient


async def main() -> None:
    async with AsyncClient() as client:
        generation = await client.enqueue(model="sim", messages=[], temperature=0.2)
        print(generation.id + 1)
"""


@pytest.mark.parametrize("tool", ["pyright", "mypy"])
def test_a_correct_program_passes_and_a_type_error_is_found(installed: Installed, tmp_path: Path, tool: str) -> None:
    """Without `py.typed` every type would be Any, and no error would be found."""
    (tmp_path / "program.py").write_text(PROGRAM.read_text("utf-8"), "utf-8")
    (tmp_path / "client_program.py").write_text(CLIENT_PROGRAM.read_text("utf-8"), "utf-8")
    (tmp_path / "mistake.py").write_text(MISTAKE, "utf-8")
    (tmp_path / "client_mistake.py").write_text(CLIENT_MISTAKE, "utf-8")
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict"}), "utf-8")
    commands: dict[str, tuple[str | Path, ...]] = {
        "pyright": ("pyright", "--pythonpath", installed.python),
        "mypy": ("mypy", "--strict", "--python-executable", installed.python, "--cache-dir", os.devnull, "."),
    }
    # Otherwise pyright checks for a newer version of itself over the network.
    quiet = {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    done = installed.run(sys.executable, "-m", *commands[tool], cwd=tmp_path, **quiet)
    assert done.returncode == 1, done.stdout + done.stderr
    errors = [line for line in done.stdout.splitlines() if "error:" in line]
    for mistake in ("client_mistake.py", "mistake.py"):
        assert any(f"{mistake}:7:" in line and '"str"' in line for line in errors), done.stdout
    assert all("mistake.py:7:" in line for line in errors), done.stdout


async def test_a_program_with_the_client_runs(installed: Installed, running: Gateway, tmp_path: Path) -> None:
    """Of a service that has nothing but the client, a URL and a key."""
    settings = {"TOKENCAST_URL": running.url, "TOKENCAST_API_KEY": "key"}
    done = await asyncio.to_thread(installed.run, installed.python, CLIENT_PROGRAM, cwd=tmp_path, **settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-2:] == ["completed True", "completed True"]


async def test_a_program_with_the_python_api_runs(installed: Installed, redis: EmbeddedRedis, tmp_path: Path) -> None:
    done = await asyncio.to_thread(installed.run, installed.python, PROGRAM, redis.url, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("cancelled True")
