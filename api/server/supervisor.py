"""`tokencast api --processes N`: several gateways on one port, and who looks after them.

Each has a listening socket of its own, among which the kernel spreads the connections evenly (SO_REUSEPORT; one shared
socket would give most of a herd to who wakes first). All sockets are made and held here: what waits in the one of a
gateway that died is answered by its successor instead of being reset.
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
from broker.settings.settings import Settings, unknown_variables

SETTLED = 10.0  # seconds: who lived longer than that starts again at once
LONGEST_PAUSE = 10.0
logger = logging.getLogger("tokencast.api")


async def supervise(settings: Settings, count: int) -> int:
    """Until a signal, which is handed on, as is a second one; the exit code. A gateway that ends by itself is started
    again, unless it says that it never can. If this process is killed they die with it."""
    with tempfile.TemporaryDirectory(prefix="tokencast-metrics-") as directory:
        # Whichever is asked for `/metrics` answers for all of them.
        supervisor = Supervisor(_sockets(settings, count), settings.metrics_dir or directory)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, supervisor.stop)
        return await supervisor.run()


def _sockets(settings: Settings, count: int) -> list[socket.socket]:
    """Where the kernel does not spread connections, the same one for all."""
    first = listen(settings, spread=sys.platform == "linux")
    if sys.platform != "linux":
        return [first] * count
    same_port = settings.model_copy(update={"port": first.getsockname()[1]})
    return [first, *(listen(same_port, spread=True) for _ in range(count - 1))]


class Supervisor:
    """One gateway for each socket."""

    def __init__(self, sockets: list[socket.socket], metrics_dir: str) -> None:
        self._sockets = sockets
        self._environment = environment(*unknown_variables(), TOKENCAST_METRICS_DIR=metrics_dir)  # told already
        self._running: dict[int, Process] = {}
        self._stopping = asyncio.Event()
        self._failed = 0

    def stop(self) -> None:
        """Asks all to end; once more, to hurry."""
        self._stopping.set()
        for process in self._running.values():
            with suppress(ProcessLookupError):
                process.terminate()

    async def run(self) -> int:
        host, port = self._sockets[0].getsockname()[:2]
        logger.info("%d processes on http://%s:%d", len(self._sockets), shown(host), port)
        await asyncio.gather(*(self._keep(number, sock) for number, sock in enumerate(self._sockets, 1)))
        return self._failed

    async def _keep(self, number: int, sock: socket.socket) -> None:
        pause = 0.1
        while not self._stopping.is_set():
            started = time.monotonic()
            status = await self._one(number, sock)
            if self._stopping.is_set():
                self._failed = self._failed or int(status not in (0, -signal.SIGTERM))  # uvicorn's way to end
                return
            if status == MISCONFIGURED:
                self._failed = status
                self.stop()
                return
            how = f"exit code {status}" if status >= 0 else signal.Signals(-status).name
            logger.error("process %d of %d ended (%s) and is started again", number, len(self._sockets), how)
            pause = 0.1 if time.monotonic() - started > SETTLED else min(2 * pause, LONGEST_PAUSE)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()

    async def _one(self, number: int, sock: socket.socket) -> int:
        """Its exit status; negative where a signal ended it. In a session of its own, so that Ctrl-C reaches it through
        us, once."""
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
