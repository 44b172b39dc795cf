"""The README's examples, run as they stand there, with nothing but the address changed."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import AsyncGenerator

import pytest

from broker.embedded import EmbeddedRedis
from tests.support import ROOT, Gateway, clean_environment, gateway, upstream_sim, worker
from worker.upstream_sim.directives import seed_of
from worker.upstream_sim.text import pieces

README = (ROOT / "README.md").read_text("utf-8")
ADDRESS = "http://127.0.0.1:8000"
ANSWER = "".join(pieces(seed_of([{"role": "user", "content": "Explain the GIL in CPython."}]), 60))


def blocks(language: str, holding: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [block for block in found if holding in block]


@pytest.fixture(scope="module")
async def running(redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    async with upstream_sim() as upstream, worker(redis.url, upstream), gateway(redis.url) as api:
        yield api


async def shell(script: str, **variables: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", script),
        env=clean_environment(**variables),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_the_curl_examples(running: Gateway) -> None:
    """Enqueue and follow; then resume, read, stop and forget the same generation."""
    first, second = blocks("sh", "curl -s")
    output = await shell((first + second).replace(ADDRESS, running.url))
    streams = output.split("event: created")
    assert len(streams) == 2  # the resumed one begins behind it
    assert output.count("event: completed") == 2
    assert '"status":"completed"' in output
    assert (await running.http.get("/v1/generations")).json()["data"] == []  # the last one deletes it


async def test_the_python_example(running: Gateway, redis: EmbeddedRedis) -> None:
    (block,) = blocks("python", "broker.enqueue")
    script = block.replace("redis://localhost:6379", redis.url)
    program = f"import asyncio\nasync def main():\n{textwrap.indent(script, '    ')}\nasyncio.run(main())\n"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env=clean_environment(), cwd=ROOT, stdout=subprocess.PIPE
    )
    output = (await process.communicate())[0].decode().split()
    assert process.returncode == 0
    assert output[:2] == ["0-1", "created"]
    assert output[-1] == "completed"


async def test_the_command_line_examples(running: Gateway) -> None:
    (block,) = blocks("sh", "tokencast enqueue")
    gid = (await running.create({"model": "sim", "messages": [{"role": "user", "content": "x"}]}))["id"]
    tokencast = f"{sys.executable} -m broker"
    script = block.replace("tokencast", tokencast).replace("gen_…", gid)
    output = await shell(script, TOKENCAST_URL=running.url)
    assert ANSWER in output
    assert gid in output


async def test_the_make_targets_and_files_it_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in re.findall(r"`((?:api|broker|worker)/[\w/.]+)`", README):
        assert (ROOT / path).exists(), path
