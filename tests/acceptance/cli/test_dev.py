"""`tokencast dev`, which `make run` calls: one command starts all processes, and they end with it."""

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

    def children(self) -> list[tuple[int, str]]:
        """Return the pid and command of every process that it started, independent of their current parents."""
        found: list[tuple[int, str]] = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if int(process.name) != self.process.pid and self._started(process):
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found.append((int(process.name), command))
            except OSError:
                pass  # the process has ended, is a zombie, or belongs to another user
        return found

    def _started(self, process: Path) -> bool:
        """Identify it by the environment or, because Redis overwrites that with its title, by the working directory."""
        mark = f"TMPDIR={self.directory}\0".encode()
        return mark in (process / "environ").read_bytes() or os.readlink(process / "cwd").startswith(
            f"{self.directory}/"
        )

    def pid_of(self, name: str) -> int:
        (pid,) = [pid for pid, command in self.children() if name in command]
        return pid

    async def wait_until_all_have_ended(self) -> None:
        await wait_until(lambda: not self.children())
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


async def test_dev_starts_all_processes_and_ctrl_c_ends_them(tmp_path: Path) -> None:
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
        await running.wait_until_all_have_ended()


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
async def test_the_printed_command_streams_and_ctrl_c_does_not_wait_for_it(tmp_path: Path) -> None:
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
        assert b"[DONE]" not in rest, "which would mean that the text is complete"
        await curl.wait()
        await running.wait_until_all_have_ended()


@linux
async def test_a_second_ctrl_c_kills_the_processes(tmp_path: Path) -> None:
    async with dev(tmp_path) as running:
        await running.says("Ctrl-C stops everything")
        gateway = running.pid_of("tokencast_broker.py api ")
        for pid in (gateway, running.pid_of("tokencast_broker.py worker ")):
            os.kill(pid, signal.SIGSTOP)  # a suspended process cannot react
        running.send(signal.SIGINT)
        await wait_until(lambda: has_stop_signal(gateway))
        running.send(signal.SIGINT)
        assert await running.wait() == 0
        await running.wait_until_all_have_ended()


async def test_ctrl_c_can_be_repeated_until_the_end(tmp_path: Path) -> None:
    """Also at the last moment, when only this process is left."""
    async with dev(tmp_path) as running:
        await running.says("Ctrl-C stops everything")
        ended = asyncio.create_task(running.wait())
        while not ended.done():
            running.send(signal.SIGINT)
            await asyncio.sleep(0.001)
        assert await ended == 0
        assert "Traceback" not in running.output
        await running.wait_until_all_have_ended()


def has_stop_signal(pid: int) -> bool:
    """Return whether a signal is pending for the suspended process, or has ended it."""
    try:
        return not re.search(r"^ShdPnd:\s+0+$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return True


@linux
async def test_all_processes_die_if_dev_is_killed(tmp_path: Path) -> None:
    async with dev(tmp_path) as running:
        await running.says("Ctrl-C stops everything")
        assert len(running.children()) == 4, "Redis, simulated upstream, worker, gateway"
        running.send(signal.SIGKILL)
        assert await running.wait() == -signal.SIGKILL
        await running.wait_until_all_have_ended()


@linux
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tokencast_broker.py worker ", "the worker"),
        ("tokencast_broker.py api ", "the gateway"),
        ("valkey-server", "the embedded Redis"),
    ],
)
async def test_dev_ends_if_one_of_its_processes_dies(tmp_path: Path, name: str, message: str) -> None:
    async with dev(tmp_path) as running:
        await running.says("Ctrl-C stops everything")
        os.kill(running.pid_of(name), signal.SIGKILL)
        assert await running.wait() == 1
        assert re.search(rf"^tokencast: {message} .*stopping everything", running.output, re.MULTILINE)
        await running.wait_until_all_have_ended()


async def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with dev(tmp_path, PORT=str(port)) as refused:
            assert await refused.wait() == 2
            (line,) = refused.lines
            assert f"Port {port} is already in use" in line
            assert "PORT" in line
            await refused.wait_until_all_have_ended()


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
async def test_a_wrong_setting_is_named_in_one_line(tmp_path: Path, variables: dict[str, str], named: str) -> None:
    async with dev(tmp_path, **variables) as refused:
        assert await refused.wait() == 2
        (line,) = refused.lines
        assert named in line
        assert "secret" not in line
        await refused.wait_until_all_have_ended()


async def test_a_configured_upstream_and_redis_are_used_and_left_running(tmp_path: Path) -> None:
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
                command for _, command in running.children() if "valkey" in command or "worker.simulator" in command
            ]
            async with httpx2.AsyncClient(base_url=running.url, timeout=DEADLINE) as http:
                body = request_body("[[sim length=3]]", "sim")
                answer = await http.post("/v1/chat/completions", json=body)
                assert answer.json()["choices"][0]["message"]["content"]
            running.send(signal.SIGINT)
            assert await running.wait() == 0
            await running.wait_until_all_have_ended()
        async with service(*check, REDIS_URL=redis.url) as checked:
            assert await checked.wait() == 1
        async with connect_redis(redis.url) as still_there:
            assert await still_there.execute("PING") == b"PONG"
