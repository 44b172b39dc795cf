"""`tokencast dev`, which `make run` uses: one command starts all processes, and its end ends them all."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from broker.dev.embedded_redis import EmbeddedRedis, free_port
from broker.redis.client import connect_redis
from tests.acceptance.cli.test_cli import tokencast
from tests.support import (
    DEADLINE,
    Service,
    clean_environment,
    gather,
    request_body,
    service,
    upstream_sim,
    wait_until,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")


class Dev(Service):
    """A `tokencast dev` with its own directory for temporary files, which also identifies its processes."""

    directory: Path
    url: str

    def others(self) -> list[tuple[int, str]]:
        """Return pid and command of every process that it started, whatever their parent is now."""
        found: list[tuple[int, str]] = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if int(process.name) != self.process.pid and self._started(process):
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found.append((int(process.name), command))
            except OSError:
                pass  # it has ended, is a zombie, or belongs to another user
        return found

    def _started(self, process: Path) -> bool:
        """Identify by the environment or, since Redis overwrites that with its title, by the working directory."""
        mark = f"TMPDIR={self.directory}\0".encode()
        return mark in (process / "environ").read_bytes() or os.readlink(process / "cwd").startswith(
            f"{self.directory}/"
        )

    def pid_of(self, name: str) -> int:
        (pid,) = [pid for pid, command in self.others() if name in command]
        return pid

    async def nothing_is_left(self) -> None:
        await wait_until(lambda: not self.others())
        assert list(self.directory.iterdir()) == []


@asynccontextmanager
async def dev(directory: Path, **variables: str) -> AsyncGenerator[Dev, None]:
    """A `tokencast dev` that has just been started."""
    port = variables.setdefault("PORT", str(free_port()))
    environment = clean_environment(TMPDIR=str(directory), **variables)
    started = await Dev.start("broker", "dev", environment=environment)
    assert isinstance(started, Dev)
    started.directory, started.url = directory, f"http://127.0.0.1:{port}"
    try:
        yield started
    finally:
        started.send(signal.SIGKILL)
        await started.wait()


async def test_one_command_starts_everything_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    async with dev(tmp_path) as running:
        await running.says("Ctrl-C stops everything")
        assert re.search(rf"dashboard +{running.url}/$", running.output, re.MULTILINE)
        assert re.search(r"upstream +SIMULATED", running.output)
        async with httpx2.AsyncClient(base_url=running.url) as http:
            assert (await http.get("/")).headers["content-type"].startswith("text/html")
            assert (await http.get("/readyz")).status_code == 200
            assert (await http.get("/v1/models")).json()["data"][0]["id"] == "gabforge-coder"
        whole, broken = await gather(
            tokencast("enqueue", "--follow", "Tell me a story. [[sim length=20 speed=0]]", url=running.url),
            tokencast("enqueue", "--follow", "[[sim fault=truncate speed=0]]", url=running.url),
        )
        assert whole.code == 0
        shown = await tokencast("show", whole.err.strip(), url=running.url)
        assert shown.out.endswith("\n\n" + whole.out)
        assert (broken.code, "upstream_truncated" in broken.err) == (1, True)
        running.send(signal.SIGINT)
        assert await running.wait() == 0
        assert "Traceback" not in running.output
        await running.nothing_is_left()


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
async def test_the_printed_command_streams_and_ctrl_c_does_not_wait_for_the_stream(tmp_path: Path) -> None:
    async with dev(tmp_path) as running:
        await running.says("Ctrl-C stops everything")
        command = re.search(r"^ +curl .*\\\n.*$", running.output, re.MULTILINE)
        assert command is not None
        slow = command[0].replace("Tell me a story.", "[[sim length=100000 speed=20]]")
        curl = await asyncio.create_subprocess_shell(slow, stdout=asyncio.subprocess.PIPE)
        assert curl.stdout is not None
        async with asyncio.timeout(DEADLINE):
            lines = [await curl.stdout.readline() for _ in range(30)]
        assert sum(line.startswith(b"data: {") for line in lines) > 5
        running.send(signal.SIGTERM)
        assert await running.wait() == 0
        rest = await asyncio.wait_for(curl.stdout.read(), DEADLINE)
        assert b"[DONE]" not in rest, "that would say that it was complete"
        await curl.wait()
        await running.nothing_is_left()


@linux
async def test_a_second_ctrl_c_kills(tmp_path: Path) -> None:
    async with dev(tmp_path) as running:
        await running.says("Ctrl-C stops everything")
        gateway = running.pid_of("-m api ")
        for pid in (gateway, running.pid_of("-m worker ")):
            os.kill(pid, signal.SIGSTOP)  # it cannot react
        running.send(signal.SIGINT)
        await wait_until(lambda: asked_to_stop(gateway))
        running.send(signal.SIGINT)
        assert await running.wait() == 0
        await running.nothing_is_left()


async def test_ctrl_c_may_be_pressed_until_it_has_ended(tmp_path: Path) -> None:
    """Also in the last moment, when only this process is left."""
    async with dev(tmp_path) as running:
        await running.says("Ctrl-C stops everything")
        ended = asyncio.create_task(running.wait())
        while not ended.done():
            running.send(signal.SIGINT)
            await asyncio.sleep(0.001)
        assert await ended == 0
        assert "Traceback" not in running.output
        await running.nothing_is_left()


def asked_to_stop(pid: int) -> bool:
    """Return whether a signal is pending for the suspended process, or has ended it."""
    try:
        return not re.search(r"^ShdPnd:\s+0+$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return True


@linux
async def test_if_it_is_killed_everything_dies_with_it(tmp_path: Path) -> None:
    async with dev(tmp_path) as running:
        await running.says("Ctrl-C stops everything")
        assert len(running.others()) == 4, "Redis, simulated upstream, worker, gateway"
        running.send(signal.SIGKILL)
        assert await running.wait() == -signal.SIGKILL
        await running.nothing_is_left()


@linux
@pytest.mark.parametrize(
    ("name", "said"),
    [("-m worker ", "the worker"), ("-m api ", "the gateway"), ("valkey-server", "the embedded Redis")],
)
async def test_a_process_that_dies_takes_the_rest_with_it(tmp_path: Path, name: str, said: str) -> None:
    async with dev(tmp_path) as running:
        await running.says("Ctrl-C stops everything")
        os.kill(running.pid_of(name), signal.SIGKILL)
        assert await running.wait() == 1
        assert re.search(rf"^tokencast: {said} .*everything is stopped", running.output, re.MULTILINE)
        await running.nothing_is_left()


async def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with dev(tmp_path, PORT=str(port)) as refused:
            assert await refused.wait() == 2
            (line,) = refused.lines
            assert f"Port {port} is taken" in line
            assert "PORT" in line
            await refused.nothing_is_left()


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"OPENAI_BASE_URL": "https://api.openai.com/v1"}, "OPENAI_API_KEY"),
        (
            {"TOKENCAST_UPSTREAMS": '[{"name": "x", "base_url": "http://127.0.0.1:9/v1", "api_key_env": "X_KEY"}]'},
            "X_KEY",
        ),
        ({"REDIS_URL": "redis://user:secret@127.0.0.1:9/0"}, "REDIS_URL"),
        ({"PORT": "http"}, "PORT"),
        ({"HOST": "192.0.2.1"}, "HOST"),
    ],
)
async def test_what_is_set_wrongly_is_named_in_one_line(tmp_path: Path, variables: dict[str, str], named: str) -> None:
    async with dev(tmp_path, **variables) as refused:
        assert await refused.wait() == 2
        (line,) = refused.lines
        assert named in line
        assert "secret" not in line
        await refused.nothing_is_left()


async def test_a_real_upstream_and_a_redis_of_ones_own_are_used_and_left_running(tmp_path: Path) -> None:
    async with EmbeddedRedis() as redis, upstream_sim() as base_url:
        variables = {"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "mine", "REDIS_URL": redis.url}
        check = ("broker", "worker", "--check")
        async with dev(tmp_path, **variables) as running:
            await running.says("Ctrl-C stops everything")
            async with service(*check, REDIS_URL=redis.url) as checked:
                assert await checked.wait() == 0
            assert "SIMULATED" not in running.output
            assert f"upstream   {base_url}" in running.output
            assert not [
                command for _, command in running.others() if "valkey" in command or "worker.simulator" in command
            ]
            async with httpx2.AsyncClient(base_url=running.url, timeout=DEADLINE) as http:
                body = request_body("[[sim length=3]]", "sim")
                answer = await http.post("/v1/chat/completions", json=body)
                assert answer.json()["choices"][0]["message"]["content"]
            running.send(signal.SIGINT)
            assert await running.wait() == 0
            await running.nothing_is_left()
        async with service(*check, REDIS_URL=redis.url) as checked:
            assert await checked.wait() == 1
        async with connect_redis(redis.url) as still_there:
            assert await still_there.execute("PING") == b"PONG"
