"""A measuring program beside the bench: says READY, is told to go, and gives its figures as one line of JSON."""

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
    """The program ended without figures; the message is what it said instead."""


class Tool(ABC, Generic[FiguresT]):
    """`async with` starts it, and ends it whatever it is doing. `ready`, `go` and `result` in this order; a program
    that waits for nobody is not told to go."""

    figures: type[FiguresT]

    def __init__(self) -> None:
        self._files: list[Path] = []

    @abstractmethod
    async def command(self) -> list[str]:
        """The program and its arguments."""

    async def started(self) -> None:
        """What is to be heard from it before anybody can use it."""

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
        """When it has ended by itself. Its exit status is not looked at: what is wrong stands in the figures."""
        line = await self.says("{")
        await self._process.wait()
        return msgspec.json.decode(line, type=self.figures)

    async def says(self, beginning: str) -> str:
        """The next line of its output that begins so; ToolFailed if there is none."""
        stdout = self._stream(self._process.stdout)
        while line := await stdout.readline():
            if (text := line.decode()).startswith(beginning):
                return text.rstrip()
        await self._process.wait()
        complaints = (await self._complaints).decode(errors="replace").strip()
        raise ToolFailed(f"{type(self).__name__} ended without saying {beginning}. {complaints}")

    def lines_in_a_file(self, lines: Iterable[str]) -> str:
        """Arguments that may be thousands; gone with the program."""
        with tempfile.NamedTemporaryFile("w", prefix="tokencast-bench-", delete=False) as file:
            file.writelines(f"{line}\n" for line in lines)
        self._files.append(Path(file.name))
        return file.name

    @staticmethod
    def _stream(stream: asyncio.StreamReader | None) -> asyncio.StreamReader:
        assert stream is not None
        return stream
