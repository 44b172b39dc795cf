"""Processes of ours that a fork server starts (see there), in place of `asyncio.create_subprocess_exec`."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRELOADED = {
    "api": ["api.__main__"],
    "worker": ["worker.__main__", "worker.worker", "openai.resources.chat.completions"],
    "worker.simulator": ["worker.simulator.__main__"],
}
"""What is started this way, and what it imports: a server for each, so that none holds another's modules."""

READ_AT_START = ("PYTHON", "LD_", "LC_", "LANG", "TZ", "MALLOC_", "OTEL_", "OPENAI_LOG")
"""Variables that the interpreter, the C library or a module reads once. A process with others is started afresh."""


class ForkServers:
    """One server for each of the modules, from the first start until `close`."""

    possible = hasattr(os, "pidfd_open")

    def __init__(self) -> None:
        self._running: dict[str, tuple[subprocess.Popen[bytes], socket.socket]] = {}

    async def start(
        self, arguments: tuple[str, ...], environment: Mapping[str, str], directory: Path, clean: Mapping[str, str]
    ) -> ForkedProcess | None:
        """None if such a process has to be started afresh. `clean` is the environment of a server."""
        if arguments[0] not in PRELOADED or directory != ROOT or read_at_start(environment) != read_at_start(clean):
            return None
        task = {"arguments": arguments, "environment": dict(environment), "directory": str(directory)}
        out, err, status = os.pipe(), os.pipe(), os.pipe()
        try:
            socket.send_fds(
                self._channel(arguments[0], clean), [json.dumps(task).encode()], [out[1], err[1], status[1]]
            )
        finally:
            for _, writing in (out, err, status):
                os.close(writing)
        process = ForkedProcess(*[await reading(end) for end, _ in (out, err, status)])
        await process.begun()
        return process

    def _channel(self, module: str, clean: Mapping[str, str]) -> socket.socket:
        if module not in self._running:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                command = [sys.executable, "-m", "tests.servers.fork_server", str(theirs.fileno()), *PRELOADED[module]]
                server = subprocess.Popen(
                    command, env=clean, cwd=ROOT, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
                )
            self._running[module] = server, ours
        return self._running[module][1]

    def close(self) -> None:
        for server, channel in self._running.values():
            channel.close()
            server.wait()
        self._running.clear()


class ForkedProcess:
    """What the tests use of `asyncio.subprocess.Process`."""

    def __init__(self, out: asyncio.StreamReader, err: asyncio.StreamReader, status: asyncio.StreamReader) -> None:
        self.stdout = out
        self.stderr = err
        self.pid = 0
        self.returncode: int | None = None
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

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)


def read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(READ_AT_START)}


async def reading(descriptor: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(descriptor, "rb", 0))
    return reader
