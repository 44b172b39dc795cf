"""The embedded Redis server of `tokencast dev` and of these tests: it starts on demand and leaves no files behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from broker.dev import embedded_redis as embedded
from broker.dev.embedded_redis import EmbeddedRedis, server_binary
from broker.errors import Misconfigured
from broker.redis.client import Reply, connect_redis
from tests.support import clean_environment, gather, wait_until

BINARIES = sorted({server_binary(), *filter(None, map(shutil.which, ("valkey-server", "redis-server")))})


@pytest.fixture(params=BINARIES, ids=lambda path: Path(path).name)
def binary(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every engine installed on this machine."""
    path: str = request.param
    monkeypatch.setattr(embedded, "server_binary", lambda: path)
    return path


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


async def ask(server: EmbeddedRedis, *command: str) -> Reply:
    async with connect_redis(server.url) as redis:
        return await redis.execute(*command)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


async def test_the_server_answers_and_leaves_no_files(binary: str, temporary: Path) -> None:
    async with EmbeddedRedis() as server:
        assert await ask(server, "PING") == b"PONG"
        assert await ask(server, "CONFIG", "GET", "save") == [b"save", b""]
        assert os.listdir(temporary) == [], "files while the server runs"
        pid = server.pid
    assert server.exited()
    assert not alive(pid)
    assert os.listdir(temporary) == []


async def test_a_restarted_server_is_empty_and_has_the_same_address(binary: str) -> None:
    async with EmbeddedRedis() as server:
        await ask(server, "SET", "key", "value")
        url = server.url
        server.kill()
        assert server.exited()
        server.kill()  # a second call has no effect
        await server.restart()
        assert server.url == url
        assert await ask(server, "GET", "key") is None


async def test_an_append_only_file_keeps_the_data_over_a_restart(binary: str, temporary: Path) -> None:
    async with EmbeddedRedis(appendonly=True) as server:
        await ask(server, "SET", "key", "value")
        await server.restart()
        assert await ask(server, "GET", "key") == b"value"
    assert os.listdir(temporary) == []


async def test_a_given_directory_is_kept_and_reusable(binary: str, tmp_path: Path) -> None:
    async with EmbeddedRedis(appendonly=True, dir=tmp_path) as server:
        await ask(server, "SET", "key", "value")
    async with EmbeddedRedis(appendonly=True, dir=tmp_path) as another:
        assert await ask(another, "GET", "key") == b"value"


async def test_a_foreign_dump_file_is_not_read(binary: str, temporary: Path) -> None:
    (temporary / "dump.rdb").write_bytes(b"not a dump file")
    async with EmbeddedRedis() as server:
        assert await ask(server, "DBSIZE") == 0


async def test_many_servers_can_start_at_once() -> None:
    async with AsyncExitStack() as stack:
        servers = await gather(*(stack.enter_async_context(EmbeddedRedis()) for _ in range(20)))
        for server in servers:
            assert f"process_id:{server.pid}\r\n" in (await ask(server, "INFO", "server")).decode()


async def test_a_port_taken_in_the_meantime_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with EmbeddedRedis() as first:
        ports = iter((first.port, first.port, embedded.free_port()))
        monkeypatch.setattr(embedded, "free_port", lambda: next(ports))
        async with EmbeddedRedis() as second:
            assert second.port != first.port
            assert f"process_id:{second.pid}\r\n" in (await ask(second, "INFO", "server")).decode()


async def test_a_missing_server_program_is_reported_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda _: None)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(Misconfigured, match=r"install .* or set REDIS_URL"):
        async with EmbeddedRedis():
            pass


async def test_a_server_that_cannot_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "server_binary", lambda: str(shutil.which("false")))
    with pytest.raises(Misconfigured, match=r"failed to start \(.*false\)"):
        async with EmbeddedRedis():
            pass


OWNER = """
import asyncio
from broker.dev.embedded_redis import EmbeddedRedis

async def main():
    async with EmbeddedRedis() as server:
        print(server.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux notifies a process of its parent's death")
async def test_the_server_ends_when_its_parent_is_killed() -> None:
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OWNER, stdout=subprocess.PIPE, env=clean_environment()
    )
    assert owner.stdout is not None
    pid = int(await owner.stdout.readline())
    assert alive(pid)
    owner.send_signal(signal.SIGKILL)
    await owner.wait()
    await wait_until(lambda: not alive(pid))
