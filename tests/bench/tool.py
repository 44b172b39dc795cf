"""A measuring program of the benchmark: it prints READY, waits for `go`, and prints its figures as one line of JSON."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

import msgspec

from broker.runtime.child_process import die_with_parent
from tests.support import ROOT, clean_environment

FiguresT = TypeVar("FiguresT")


class ToolFailed(Exception):
    """The program ended without figures; the message has its output."""


class Tool(ABC, Generic[FiguresT]):
    """`async with` starts the program and ends it in any state. Call `ready`, `go` and `result` in this order; `go` is
    not needed for a program that does not wait."""

    figures: type[FiguresT]

    def __init__(self) -> None:
        self._files: list[Path] = []

    @abstractmethod
    async def command(self) -> list[str]:
        """The program and its arguments."""

    async def started(self) -> None:
        """Wait for output that is needed before the program can be used."""

    async def __aenter__(self) -> Self:
        command = await self.command()
        self._process = await asyncio.create_subprocess_exec(
            *die_with_parent(command),
            cwd=ROOT,
            env=clean_environment(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._complaints = asyncio.create_task(self._stream(self._process.stderr).read())
        try:
            await self.started()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def _end(self) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await asyncio.gather(self._stream(self._process.stdout).read(), self._complaints, self._process.wait())
        for file in self._files:
            file.unlink()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ready(self) -> None:
        await self.says("READY")

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")

    async def result(self) -> FiguresT:
        """Wait for its end and return its figures. The exit status is ignored, since errors are part of the figures."""
        line = await self.says("{")
        await self._process.wait()
        return msgspec.json.decode(line, type=self.figures)

    async def says(self, beginning: str) -> str:
        """The next line of output with this beginning. Raises ToolFailed if there is none."""
        stdout = self._stream(self._process.stdout)
        while line := await stdout.readline():
            if (text := line.decode()).startswith(beginning):
                return text.rstrip()
        await self._process.wait()
        complaints = (await self._complaints).decode(errors="replace").strip()
        raise ToolFailed(f"{type(self).__name__} ended without {beginning}. {complaints}")

    def lines_in_a_file(self, lines: Iterable[str]) -> str:
        """Write up to thousands of arguments to a file that is removed with the program."""
        with tempfile.NamedTemporaryFile("w", prefix="tokencast-bench-", delete=False) as file:
            file.writelines(f"{line}\n" for line in lines)
        self._files.append(Path(file.name))
        return file.name

    @staticmethod
    def _stream(stream: asyncio.StreamReader | None) -> asyncio.StreamReader:
        assert stream is not None
        return stream
