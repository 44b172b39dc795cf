"""A terminal for tests: runs a command in a real pty and interprets its output as a screen."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import shlex
import signal
import struct
import sys
import termios
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyte

from tests.support import DEADLINE, ROOT, clean_environment, wait_until

TOKENCAST = (sys.executable, "-m", "broker")


def installed(directory: Path) -> str:
    """Return a PATH with `tokencast` on it."""
    program = directory / "tokencast"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(TOKENCAST)} "$@"\n')
    program.chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


class Terminal:
    def __init__(self, columns: int, lines: int) -> None:
        self.raw = b""
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self._here, self.tty = pty.openpty()
        self._set_size(columns, lines)
        self.modes = termios.tcgetattr(self.tty)
        self.process: asyncio.subprocess.Process

    async def start(self, *command: str, url: str, **variables: str) -> None:
        """Start a command with this pty as its controlling terminal."""
        asyncio.get_running_loop().add_reader(self._here, self._read)
        self.process = await asyncio.create_subprocess_exec(
            *command,
            env=clean_environment(TOKENCAST_URL=url, TERM="xterm", **variables),
            cwd=ROOT,
            stdin=self.tty,
            stdout=self.tty,
            stderr=self.tty,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def _read(self) -> None:
        data = os.read(self._here, 65536)
        self.raw += data
        self._stream.feed(data)

    @property
    def lines(self) -> list[str]:
        """The lines of the screen, without trailing spaces."""
        return [line.rstrip() for line in self.screen.display]

    def row(self, gid: str) -> list[str]:
        """Return the words of a generation's line; [] if it is not shown."""
        return next((line.split() for line in self.lines if line.startswith((gid, f"{gid[-8:]} "))), [])

    async def shows(self, what: str | Callable[[], Any]) -> None:
        """Wait until a text is shown, or a condition holds."""
        try:
            await wait_until((lambda: what in "\n".join(self.lines)) if isinstance(what, str) else what)
        except TimeoutError:
            raise AssertionError("\n".join([f"{what} is not on the screen:", *self.lines])) from None

    def press(self, keys: str) -> None:
        os.write(self._here, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        self.screen.resize(lines, columns)
        self._set_size(columns, lines)

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._here, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    async def end(self) -> int:
        """Wait for the end of the command and its output, and return the exit code."""
        async with asyncio.timeout(DEADLINE):
            code = await self.process.wait()
        size = -1
        while size != len(self.raw):
            size = len(self.raw)
            await asyncio.sleep(0)
        return code

    def is_restored(self) -> bool:
        """Return whether the terminal is in its initial state: main screen, visible cursor, line wrapping, echo."""
        on = [self.raw.rfind(b"\x1b[?" + mode) for mode in (b"1049h", b"25l", b"7l")]
        off = [self.raw.rfind(b"\x1b[?" + mode) for mode in (b"1049l", b"25h", b"7h")]
        return all(a < b for a, b in zip(on, off, strict=True)) and termios.tcgetattr(self.tty) == self.modes

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._here)
        for file in (self._here, self.tty):
            os.close(file)


@asynccontextmanager
async def terminal(
    *command: str, url: str, columns: int = 120, lines: int = 16, **variables: str
) -> AsyncGenerator[Terminal, None]:
    """Run a command in a terminal; it is killed at the end if it is still running."""
    started = Terminal(columns, lines)
    await started.start(*command, url=url, **variables)
    try:
        yield started
    finally:
        if started.process.returncode is None:
            started.process.send_signal(signal.SIGKILL)
            await started.process.wait()
        started.close()
