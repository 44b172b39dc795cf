"""Full-screen access to a terminal: alternate screen, keys, size. Its state is restored however the program ends."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Self

from broker.cli.options import TERMINATED
from broker.runtime.environment import read_variable

# Alternate screen, no cursor, no wrapping: a line that the terminal measures wider than we did is cut at the edge.
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"
_LEAVE = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
STYLES = {"head": "\x1b[7m", "faint": "\x1b[2m"}
_KEY = re.compile(rb"\x1b[\[O][\d;]*[A-Za-z~]|.", re.DOTALL)
_NAMED = {"A": "up", "B": "down", "H": "home", "5~": "page up", "6~": "page down"}


def is_screen() -> bool:
    """Return whether stdout is a terminal with cursor control."""
    return sys.stdout.isatty() and read_variable("TERM") not in (None, "dumb")


class Screen:
    """A context manager for the main thread.

    SIGTERM and SIGHUP end it as SystemExit, Ctrl-C as KeyboardInterrupt. Ctrl-Z restores the terminal until the
    program continues.
    """

    def __init__(self) -> None:
        self._keys = sys.stdin.fileno() if sys.stdin and sys.stdin.isatty() else None
        self._before: list[Any] = []
        self._handlers: dict[int, Any] = {}
        self._woken, self._wake = os.pipe()
        for end in (self._woken, self._wake):
            os.set_blocking(end, False)

    def __enter__(self) -> Self:
        try:
            self._handlers = {
                signal.SIGTERM: signal.signal(signal.SIGTERM, _end),
                signal.SIGHUP: signal.signal(signal.SIGHUP, _end),
                signal.SIGTSTP: signal.signal(signal.SIGTSTP, self._pause),
                signal.SIGWINCH: signal.signal(signal.SIGWINCH, _notice),
            }
            signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
            self._enter()
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def wake(self) -> None:
        """Make `wait` return; may be called from any thread."""
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes it as well
            os.write(self._wake, b"\0")

    def wait(self, seconds: float) -> list[str]:
        """Return the pressed keys, by name or character; none after the time-out, a wake-up or a change of size."""
        files = [self._woken] if self._keys is None else [self._woken, self._keys]
        ready, _, _ = select.select(files, [], [], seconds)
        if self._woken in ready:
            os.read(self._woken, 4096)
        if self._keys is None or self._keys not in ready:
            return []
        pressed = os.read(self._keys, 4096)
        if not pressed:
            self._keys = None
        return [_name(key) for key in _KEY.findall(pressed)]

    def size(self) -> tuple[int, int]:
        """Return columns and lines; 80 × 24 if the terminal does not know its size."""
        columns, lines = os.get_terminal_size(sys.stdout.fileno())
        return columns or 80, lines or 24

    def draw(self, lines: Sequence[tuple[str, str]]) -> None:
        """Draw lines, each a text and a style, from the top of the screen, in one write."""
        shown = (f"{STYLES[style]}{text}\x1b[0m" if style else text for text, style in lines)
        sys.stdout.write("\x1b[H" + "\x1b[K\r\n".join(shown) + "\x1b[K\x1b[J")
        sys.stdout.flush()

    def _enter(self) -> None:
        if self._keys is not None:
            self._before = termios.tcgetattr(self._keys)
            tty.setcbreak(self._keys)
        sys.stdout.write(_ENTER)
        sys.stdout.flush()

    def _leave(self) -> None:
        with contextlib.suppress(OSError):  # the terminal no longer exists
            sys.stdout.write(_LEAVE)
            sys.stdout.flush()
        if self._keys is not None and self._before:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._keys, termios.TCSADRAIN, self._before)

    def _restore(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a second signal must not interrupt the clean-up
        self._leave()
        signal.set_wakeup_fd(-1)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _pause(self, number: int, frame: FrameType | None) -> None:
        """Handle Ctrl-Z: restore the terminal, stop, and take it again when the program continues."""
        del frame
        self._leave()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # the process stops here until SIGCONT
        signal.signal(number, self._pause)
        self._enter()
        self.wake()


def _end(number: int, frame: FrameType | None) -> None:
    del number, frame
    sys.exit(TERMINATED)


def _notice(number: int, frame: FrameType | None) -> None:
    """Do nothing: the existence of a handler makes `wait` return."""


def _name(key: bytes) -> str:
    if key.startswith(b"\x1b") and len(key) > 2:
        return _NAMED.get(key[2:].decode(), "")
    return key.decode(errors="replace")
