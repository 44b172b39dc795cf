"""The unmodified OpenAI SDKs, each in a process of its own that runs calls for a test.

`oldest` is the first openai-python with today's interface, in an environment created from `tests/sdk/oldest.txt`;
`newest` is the one that this project depends on; `node` is openai-node, from `tests/node/package-lock.json`. The first
test that needs an environment creates it, once for each lock file.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support import DEADLINE, ROOT, Gateway, clean_environment

Json = dict[str, Any]
CACHE = ROOT / ".cache"
LOCK_FILE = ROOT / "tests/sdk/oldest.txt"
PYTHON_DRIVER = ROOT / "tests/sdk/driver.py"
NODE = ROOT / "tests/node"

README_URL = "http://127.0.0.1:8000"

NODE_SDK = pytest.param("node", marks=pytest.mark.node)
ALL = ["oldest", "newest", NODE_SDK]
ALL_FORMS = ["oldest", "oldest async", "newest", "newest async", NODE_SDK]


@dataclass
class Result:
    """The results of one call, in the order of their arrival."""

    headers: dict[str, str] = field(default_factory=dict)
    chunks: list[Json] = field(default_factory=list)
    completion: Json | None = None
    models: list[Json] = field(default_factory=list)
    error: Json | None = None

    @property
    def generation(self) -> str:
        return self.headers["x-generation-id"]

    def text(self, index: int = 0, name: str = "content") -> str:
        """The content of a choice, or another of its fields, joined as a user would."""
        if self.completion is not None:
            return self.completion["choices"][index]["message"].get(name) or ""
        choices = [choice for chunk in self.chunks for choice in chunk.get("choices") or []]
        deltas = [choice.get("delta") or {} for choice in choices if choice["index"] == index]
        return whole("".join(delta.get(name) or "" for delta in deltas))

    @property
    def finish_reasons(self) -> dict[int, str]:
        source = [self.completion] if self.completion is not None else self.chunks
        choices = [choice for one in source for choice in one.get("choices") or []]
        return {choice["index"]: choice["finish_reason"] for choice in choices if choice.get("finish_reason")}

    @property
    def usage(self) -> Json | None:
        source = [self.completion] if self.completion is not None else self.chunks
        return next((one["usage"] for one in source if one.get("usage")), None)


def whole(text: str) -> str:
    """Join surrogate pairs whose halves are in two chunks."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")


class Call:
    """A running call."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[Json] = asyncio.Queue()
        self.result = Result()
        self._ended = False

    async def chunk(self) -> Json:
        """Wait for the next chunk that the caller receives."""
        while not (message := await self._next()).get("chunk"):
            assert not self._ended, self.result.error
        return message["chunk"]

    async def wait_for_headers(self) -> None:
        """Wait until the caller has the headers of its stream."""
        while not self.result.headers:
            await self._next()

    async def end(self) -> Result:
        while not self._ended:
            await self._next()
        return self.result

    async def _next(self) -> Json:
        async with asyncio.timeout(DEADLINE):
            message = await self.messages.get()
        self._ended = "end" in message
        if "chunk" in message:
            self.result.chunks.append(message["chunk"])
        for name in ("headers", "completion", "models", "error"):
            if name in message:
                setattr(self.result, name, message[name])
        return message


class Sdk:
    """One SDK. `url` is the address of a gateway or an upstream, without `/v1`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process
        self._calls: dict[int, Call] = {0: Call()}
        self._reader = asyncio.create_task(self._read())
        self.version = ""

    async def ready(self) -> Sdk:
        async with asyncio.timeout(DEADLINE):
            self.version = (await self._calls[0].messages.get())["version"]
        return self

    def start(self, url: str, call: str, **arguments: Any) -> Call:
        """Start `create`, `stream`, `raw` (create with raw response), `helper` (the accumulating stream), `retrieve` or
        `models`, with the keyword arguments of openai-python."""
        number = len(self._calls)
        self._calls[number] = Call()
        job = {"job": number, "base_url": f"{url.removesuffix('/v1')}/v1", "call": call, **arguments}
        assert self._process.stdin
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        return self._calls[number]

    async def call(self, url: str, call: str, **arguments: Any) -> Result:
        return await self.start(url, call, **arguments).end()

    async def _read(self) -> None:
        assert self._process.stdout
        while line := await self._process.stdout.readline():
            message = json.loads(line)
            self._calls[message.pop("job")].messages.put_nowait(message)

    async def stop(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        async with asyncio.timeout(DEADLINE):
            assert await self._process.wait() == 0
            await self._reader


CLASSES = {
    400: "BadRequestError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    409: "ConflictError",
    422: "UnprocessableEntityError",
    429: "RateLimitError",
    502: "InternalServerError",
    503: "InternalServerError",
    504: "InternalServerError",
}


def assert_raised(sdk: Sdk, result: Result, status: int, code: str | None, param: str | None = None) -> Json:
    """Check that the error is of the SDK's class for this status, and return it."""
    error = result.error
    assert error is not None
    assert error["class"] == CLASSES.get(status, "APIError" if sdk.name == "node" else "APIStatusError")
    assert (error["status"], error["code"], error["param"]) == (status, code, param)
    assert (result.chunks, result.completion) == ([], None)
    return error


async def generations(api: Gateway, label: str) -> list[Json]:
    """The generations with this label, the newest first."""
    listed = (await api.http.get("/v1/generations?limit=100")).json()["data"]
    return [one for one in listed if one["metadata"].get("label") == label]


@asynccontextmanager
async def sdk_named(name: str) -> AsyncGenerator[Sdk, None]:
    """A started SDK that is ready for calls."""
    version, _, form = name.partition(" ")
    if version == "node":
        command = [node(), str(NODE / "driver.mjs")]
    else:
        python = oldest_python() if version == "oldest" else sys.executable
        command = [str(python), "-W", "error", str(PYTHON_DRIVER), *form.split()]
    process = await asyncio.create_subprocess_exec(
        *command,
        env=clean_environment(PYTHONPATH=""),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )
    sdk = Sdk(name, process)
    try:
        yield await sdk.ready()
    finally:
        await sdk.stop()


def oldest_python() -> Path:
    """The interpreter of an environment with the oldest openai-python."""
    home = CACHE / f"openai-oldest-{digest(LOCK_FILE, sys.version)}"
    python = home / "bin" / "python"
    with exclusive("openai-oldest"):
        if not (home / "ready").exists():
            shutil.rmtree(home, ignore_errors=True)
            run(sys.executable, "-m", "venv", "--without-pip", str(home))
            pip = (sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check")
            run(*pip, "install", "--quiet", "--require-hashes", "-r", str(LOCK_FILE))
            (home / "ready").touch()
    return python


def node() -> str:
    """The path of Node.js, with openai-node installed next to the scripts; skips the test if it is not installed. The
    SDK asks for Node.js 22 and runs on 20."""
    binary, npm = node_and_npm()
    ready = NODE / "node_modules" / f".ready-{digest(NODE / 'package-lock.json')}"
    with exclusive("openai-node"):
        if not ready.exists():
            run(npm, "ci", "--no-audit", "--no-fund", "--loglevel=error", cwd=NODE)
            ready.touch()
    return binary


def node_and_npm() -> tuple[str, str]:
    """The paths of Node.js and npm; skips the test if they are not installed, or too old."""
    binary, npm = shutil.which("node"), shutil.which("npm")
    if binary is None or npm is None:
        pytest.skip("Node.js with npm is not installed")
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.removeprefix("v").partition(".")[0]) < 20:
        pytest.skip(f"Node.js {version.strip()} is older than 20")
    return binary, npm


def documented_snippet(language: str) -> str:
    """The README's snippet for the SDK of this language, without the comment that names its file."""
    readme = (ROOT / "README.md").read_text("utf-8")
    [snippet] = re.findall(
        rf"^```{language}\n(?:(?:#|//) \S+\n)?(.*?chat\.completions\.create.*?)^```$", readme, re.DOTALL | re.MULTILINE
    )
    return snippet


async def run_snippet(url: str, language: str, *command: str) -> str:
    """The output of the README's snippet, run unchanged except for the address and the key."""
    source = documented_snippet(language)
    assert source.count(README_URL) == 1
    process = await asyncio.create_subprocess_exec(
        *command,
        env=clean_environment(PYTHONPATH="", TOKENCAST_API_KEY="key"),
        cwd=NODE,  # so that Node finds openai-node
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE):
        out, err = await process.communicate(source.replace(README_URL, url).encode())
    assert (process.returncode, err.decode()) == (0, "")
    return out.decode()


def digest(file: Path, more: str = "") -> str:
    return hashlib.sha256(file.read_bytes() + more.encode()).hexdigest()[:12]


@contextmanager
def exclusive(name: str) -> Iterator[None]:
    """If several processes run tests, one prepares the environment and the others wait for it."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(*command: str, cwd: Path = ROOT) -> None:
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
