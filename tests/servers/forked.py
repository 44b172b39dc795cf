"""Our processes started by a fork server (see fork_server.py) instead of `asyncio.create_subprocess_exec`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

ROOT = Path(__file__).parents[2]
PRELOADED = {
    "broker": ["broker.__main__"],
    "api": ["api.__main__"],
    "worker": ["worker.__main__", "worker.worker", "openai.resources.chat.completions"],
    "worker.simulator": ["worker.simulator.__main__"],
}
"""The programs started in this way and their imports. Each has its own server, without the modules of the others."""

READ_AT_START = ("PYTHON", "LD_", "LC_", "LANG", "TZ", "MALLOC_", "OTEL_", "OPENAI_LOG")
"""Variables that the interpreter, the C library or a module reads once. If they differ, a new process is started."""


class ForkServers:
    """One server for each of the modules, from the first start until `close`."""

    possible = hasattr(os, "pidfd_open")
    current: ClassVar[ForkServers | None] = None
    """The servers of a test run. The benchmark has none: it starts its processes as users do."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._running: dict[str, tuple[subprocess.Popen[bytes], socket.socket]] = {}

    async def start(
        self,
        arguments: tuple[str, ...],
        environment: Mapping[str, str],
        directory: Path,
        stdin: int,
        stdout: int,
    ) -> ForkedProcess | None:
        """Fork a process. Returns None if it has to be started as a new process."""
        differs = read_at_start(environment) != read_at_start(self._environment)
        if arguments[0] not in PRELOADED or directory != ROOT or differs:
            return None
        task = {"arguments": arguments, "environment": dict(environment), "directory": str(directory)}
        given = os.pipe() if stdin == subprocess.PIPE else (os.open(os.devnull, os.O_RDONLY), -1)
        out = os.pipe() if stdout == subprocess.PIPE else (-1, os.dup(stdout))
        err, status = os.pipe(), os.pipe()
        theirs = [given[0], out[1], err[1], status[1]]
        try:
            socket.send_fds(self._channel(arguments[0]), [json.dumps(task).encode()], theirs)
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        process = ForkedProcess(given[1], *[await reading(end) for end, _ in (out, err, status)])
        await process.begun()
        return process

    def _channel(self, module: str) -> socket.socket:
        if module not in self._running:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                command = [sys.executable, "-m", "tests.servers.fork_server", str(theirs.fileno()), *PRELOADED[module]]
                server = subprocess.Popen(
                    command, env=self._environment, cwd=ROOT, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
                )
            self._running[module] = server, ours
        return self._running[module][1]

    def close(self) -> None:
        for server, channel in self._running.values():
            channel.close()
            server.wait()
        self._running.clear()


class ForkedProcess:
    """The part of `asyncio.subprocess.Process` that the tests use."""

    def __init__(
        self,
        given: int,
        out: asyncio.StreamReader | None,
        err: asyncio.StreamReader | None,
        status: asyncio.StreamReader | None,
    ) -> None:
        assert status is not None
        self.stdout = out
        self.stderr = err
        self.pid = 0
        self.returncode: int | None = None
        self._given = given
        self._status = status
        self._ended = asyncio.Event()

    async def begun(self) -> None:
        self.pid = int(await self._status.readline())
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        self.returncode = int(await self._status.readline())
        await self._status.read()
        self._ended.set()

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    async def communicate(self, given: bytes | None = None) -> tuple[bytes, bytes]:
        """Write to stdin, if it is a pipe, and read all output. Can be called once."""
        if self._given != -1:
            await asyncio.to_thread(write, self._given, given or b"")
        out, err = await asyncio.gather(all_of(self.stdout), all_of(self.stderr))
        await self.wait()
        return out, err

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Process = asyncio.subprocess.Process | ForkedProcess


async def start_module(
    *arguments: str,
    environment: Mapping[str, str],
    cwd: Path = ROOT,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.PIPE,
) -> Process:
    """Start `python -m` with these arguments, in its own session."""
    if ForkServers.current is not None:
        forked = await ForkServers.current.start(arguments, environment, cwd, stdin, stdout)
        if forked is not None:
            return forked
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *arguments,
        env=environment,
        cwd=cwd,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(READ_AT_START)}


async def all_of(stream: asyncio.StreamReader | None) -> bytes:
    return b"" if stream is None else await stream.read()


def write(descriptor: int, data: bytes) -> None:
    with suppress(BrokenPipeError), open(descriptor, "wb", buffering=0) as pipe:
        pipe.write(data)


async def reading(descriptor: int) -> asyncio.StreamReader | None:
    if descriptor == -1:
        return None
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(descriptor, "rb", 0))
    return reader
