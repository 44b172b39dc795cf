"""`tokencast api --processes N`: several gateways on one port, and their supervisor.

Each gateway has a listening socket of its own, among which the kernel spreads the connections evenly (SO_REUSEPORT;
with one shared socket, most of a burst would go to the process that wakes first). The supervisor creates and holds all
sockets: connections that wait at the socket of a dead gateway are served by its successor instead of being reset.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import tempfile
import time
from asyncio.subprocess import Process
from contextlib import suppress

from api.server.server import listen
from broker.runtime.child_process import die_with_parent
from broker.runtime.environment import environment
from broker.runtime.process import MISCONFIGURED, python_module
from broker.runtime.sockets import shown
from broker.settings.loading import unknown_variables
from broker.settings.settings import Settings

STABLE_AFTER = 10.0  # seconds: a process that ran longer is restarted at once
MAX_PAUSE = 10.0
logger = logging.getLogger("tokencast.api")


async def supervise(settings: Settings, count: int) -> int:
    """Run the gateways until a signal, which is passed on, as is a second one; return the exit code. A gateway that
    ends by itself is restarted, unless it reports that it cannot run. If this process is killed, its gateways end
    too."""
    with tempfile.TemporaryDirectory(prefix="tokencast-metrics-") as directory:
        # Each process answers `/metrics` for all of them.
        supervisor = Supervisor(_sockets(settings, count), settings.metrics_dir or directory)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, supervisor.stop)
        return await supervisor.run()


def _sockets(settings: Settings, count: int) -> list[socket.socket]:
    """Return the sockets; one for all processes if the kernel does not spread connections."""
    first = listen(settings, spread=sys.platform == "linux")
    if sys.platform != "linux":
        return [first] * count
    same_port = settings.model_copy(update={"port": first.getsockname()[1]})
    return [first, *(listen(same_port, spread=True) for _ in range(count - 1))]


class Supervisor:
    """Runs one gateway per socket."""

    def __init__(self, sockets: list[socket.socket], metrics_dir: str) -> None:
        self._sockets = sockets
        self._environment = environment(*unknown_variables(), TOKENCAST_METRICS_DIR=metrics_dir)  # already reported
        self._running: dict[int, Process] = {}
        self._stopping = asyncio.Event()
        self._failed = 0

    def stop(self) -> None:
        """Ask all gateways to end; a second call makes them hurry."""
        self._stopping.set()
        for process in self._running.values():
            with suppress(ProcessLookupError):
                process.terminate()

    async def run(self) -> int:
        host, port = self._sockets[0].getsockname()[:2]
        logger.info("%d processes on http://%s:%d", len(self._sockets), shown(host), port)
        await asyncio.gather(*(self._keep_running(number, sock) for number, sock in enumerate(self._sockets, 1)))
        return self._failed

    async def _keep_running(self, number: int, sock: socket.socket) -> None:
        pause = 0.1
        while not self._stopping.is_set():
            started = time.monotonic()
            status = await self._run_once(number, sock)
            if self._stopping.is_set():
                self._failed = self._failed or int(status not in (0, -signal.SIGTERM))  # how uvicorn ends
                return
            if status == MISCONFIGURED:
                self._failed = status
                self.stop()
                return
            how = f"exit code {status}" if status >= 0 else signal.Signals(-status).name
            logger.error("process %d of %d ended (%s); restarting it", number, len(self._sockets), how)
            pause = 0.1 if time.monotonic() - started > STABLE_AFTER else min(2 * pause, MAX_PAUSE)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()

    async def _run_once(self, number: int, sock: socket.socket) -> int:
        """Run a gateway and return its exit status; negative if a signal ended it. It has a session of its own, so that
        Ctrl-C reaches it through us, once."""
        command = python_module("api", "--socket", str(sock.fileno()))
        process = await asyncio.create_subprocess_exec(
            *die_with_parent(command),
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(sock.fileno(),),
            start_new_session=True,
        )
        self._running[number] = process
        if self._stopping.is_set():
            process.terminate()
        try:
            return await process.wait()
        finally:
            del self._running[number]
