"""The TypeScript client, built from its sources, and a Node.js process that calls it for a test."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import subprocess
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

from tests.acceptance.openai.sdk import digest, exclusive, node_and_npm, run
from tests.support import DEADLINE, ROOT, clean_environment

Json = dict[str, Any]
PACKAGE = ROOT / "clients/typescript"


@cache
def built() -> str:
    """Build the client in its folder, once for each state of its sources. Return the path of Node.js; skips the test if
    it is not installed."""
    binary, npm = node_and_npm()
    installed = PACKAGE / "node_modules" / f".ready-{digest(PACKAGE / 'package-lock.json')}"
    sources = [PACKAGE / "tsconfig.json", PACKAGE / "package-lock.json", *sorted(PACKAGE.glob("src/**/*.ts"))]
    state = hashlib.sha256(b"\0".join(str(path).encode() + path.read_bytes() for path in sources)).hexdigest()
    compiled = PACKAGE / "node_modules/.built"  # not in dist/, which is published
    with exclusive("typescript-client"):
        if not installed.exists():
            run(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", cwd=PACKAGE)
            installed.touch()
        if not (PACKAGE / "dist").exists() or not compiled.exists() or compiled.read_text() != state:
            shutil.rmtree(PACKAGE / "dist", ignore_errors=True)
            run("node_modules/.bin/tsc", cwd=PACKAGE)
            compiled.write_text(state)
    return binary


def consumer(folder: Path) -> Path:
    """A project that depends on the client as it is published, on React and on its types."""
    built()
    _, npm = node_and_npm()
    run(npm, "pack", "--ignore-scripts", "--silent", "--pack-destination", str(folder), cwd=PACKAGE)
    [archive] = folder.glob("*.tgz")
    modules = folder / "node_modules"
    (modules / "tokencast-client").mkdir(parents=True)
    run("tar", "-xzf", str(archive), "-C", str(modules / "tokencast-client"), "--strip-components=1")
    for name in ("react", "react-dom", "scheduler", "csstype", "undici-types", "@types"):
        (modules / name).symlink_to(PACKAGE / "node_modules" / name)
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    return folder


def bundle(code: str, *, loader: str = "tsx", folder: Path = PACKAGE) -> str:
    """A script for a page: the code, with everything that it imports."""
    built()
    options = f"--bundle --loader={loader} --jsx=automatic --jsx-dev --format=iife --log-level=warning"
    done = subprocess.run(
        [
            PACKAGE / "node_modules/.bin/esbuild",
            *options.split(),
            '--define:process.env.NODE_ENV="development"',
        ],
        input=code,
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


class Call:
    """A running call of a method: `received` are the items of its iteration, `states` those of the connection."""

    def __init__(self, process: NodeClient, number: int) -> None:
        self._process = process
        self._number = number
        self._messages: asyncio.Queue[Json] = asyncio.Queue()
        self._ended = False
        self.received: list[Json] = []
        self.states: list[list[Any]] = []
        self.result: Any = None
        self.error: Json | None = None

    def take(self, message: Json) -> None:
        self._messages.put_nowait(message)

    async def until(self, condition: Callable[[list[Json]], bool]) -> None:
        """Wait until the received items meet a condition."""
        while not condition(self.received):
            await self._next()

    async def until_text(self, text: str) -> None:
        """Wait until the events since the last reset have this text."""
        await self.until(lambda _: self.text == text)

    async def until_live(self) -> None:
        """Wait until the stream is open."""
        while ["live", None] not in self.states:
            await self._next()

    @property
    def text(self) -> str:
        shown = ""
        for event in self.received:
            shown = "" if event["name"] == "reset" else shown + event["text"]
        return shown

    async def end(self) -> Any:
        """Wait for the end; return the result. Fails if there is an error."""
        error = await self.failure()
        assert error is None, error
        return self.result

    async def failure(self) -> Json | None:
        """Wait for the end; return the error."""
        while not self._ended:
            await self._next()
        return self.error

    async def abort(self) -> None:
        """Abort the call's signal."""
        await self._process.send({"job": self._number, "abort": True})

    async def _next(self) -> None:
        assert not self._ended, (self.received, self.error)
        async with asyncio.timeout(DEADLINE):
            message = await self._messages.get()
        self._ended = "end" in message
        if "item" in message:
            self.received.append(message["item"])
        if "state" in message:
            self.states.append(message["state"])
        self.result = message.get("result", self.result)
        self.error = message.get("error", self.error)


class NodeClient:
    """A Node.js process with clients: `options` are those of `new Client`."""

    def __init__(self, process: asyncio.subprocess.Process, **options: Any) -> None:
        self._process = process
        self._calls: dict[int, Call] = {}
        self._reader = asyncio.create_task(self._read())
        self.options = options

    async def start(self, method: str, *arguments: Any, client: Json | None = None) -> Call:
        """Start a call; `client` are options of its client."""
        number = len(self._calls)
        call = self._calls[number] = Call(self, number)
        options = self.options if client is None else client
        await self.send({"job": number, "client": options, "method": method, "arguments": arguments})
        return call

    async def call(self, method: str, *arguments: Any, client: Json | None = None) -> Any:
        """The result of a call."""
        return await (await self.start(method, *arguments, client=client)).end()

    async def refused(self, method: str, *arguments: Any, client: Json | None = None) -> Json:
        """The error of a call."""
        error = await (await self.start(method, *arguments, client=client)).failure()
        assert error is not None
        return error

    async def send(self, message: Json) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        await self._process.stdin.drain()

    async def _read(self) -> None:
        assert self._process.stdout
        while line := await self._process.stdout.readline():
            message = json.loads(line)
            self._calls[message["job"]].take(message)
        for call in self._calls.values():
            call.take({"end": True, "error": {"class": "the process has ended"}})

    async def stop(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        async with asyncio.timeout(DEADLINE):
            assert await self._process.wait() == 0
            await self._reader


@asynccontextmanager
async def node_client(**options: Any) -> AsyncGenerator[NodeClient, None]:
    process = await asyncio.create_subprocess_exec(
        *(built(), str(ROOT / "tests/node/client.mjs"), str(PACKAGE)),
        env=clean_environment(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )
    started = NodeClient(process, **options)
    try:
        yield started
    finally:
        await started.stop()
