"""The stock OpenAI SDKs, each in a process of its own that calls what a test asks it to call.

`oldest` is the first openai-python with today's interface, in an environment made from `tests/sdk/oldest.txt`;
`newest` the one that this project itself depends on; `node` is openai-node, from `tests/node/package-lock.json`. What
is missing is prepared by the first test that needs it, once for each lock file.
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
    """What one call gave its caller, in the order in which it came."""

    headers: dict[str, str] = field(default_factory=dict)
    chunks: list[Json] = field(default_factory=list)
    completion: Json | None = None
    models: list[Json] = field(default_factory=list)
    error: Json | None = None

    @property
    def generation(self) -> str:
        return self.headers["x-generation-id"]

    def text(self, index: int = 0, name: str = "content") -> str:
        """A choice's content, or another field of it, joined as a user would."""
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
    """Joins surrogate pairs whose halves came in two chunks."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")


class Call:
    """A call under way."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[Json] = asyncio.Queue()
        self.result = Result()
        self._over = False

    async def chunk(self) -> Json:
        """The next chunk, as soon as the caller has it."""
        while not (news := await self._next()).get("chunk"):
            assert not self._over, self.result.error
        return news["chunk"]

    async def answered(self) -> None:
        """Until the caller has the headers of its stream."""
        while not self.result.headers:
            await self._next()

    async def end(self) -> Result:
        while not self._over:
            await self._next()
        return self.result

    async def _next(self) -> Json:
        async with asyncio.timeout(DEADLINE):
            news = await self.told.get()
        self._over = "end" in news
        if "chunk" in news:
            self.result.chunks.append(news["chunk"])
        for name in ("headers", "completion", "models", "error"):
            if name in news:
                setattr(self.result, name, news[name])
        return news


class Sdk:
    """One SDK. `url` is a gateway's or an upstream's address, without its `/v1`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process
        self._calls: dict[int, Call] = {0: Call()}
        self._reader = asyncio.create_task(self._read())
        self.version = ""

    async def ready(self) -> Sdk:
        async with asyncio.timeout(DEADLINE):
            self.version = (await self._calls[0].told.get())["version"]
        return self

    def start(self, url: str, call: str, **arguments: Any) -> Call:
        """Begins `create`, `stream`, `raw` (create with raw response), `helper` (the accumulating stream),
        `retrieve` or `models`, with openai-python's keyword arguments."""
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
            news = json.loads(line)
            self._calls[news.pop("job")].told.put_nowait(news)

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


def raised(sdk: Sdk, result: Result, status: int, code: str | None, param: str | None = None) -> Json:
    """The error, which is the SDK's own for that status."""
    error = result.error
    assert error is not None
    assert error["class"] == CLASSES.get(status, "APIError" if sdk.name == "node" else "APIStatusError")
    assert (error["status"], error["code"], error["param"]) == (status, code, param)
    assert (result.chunks, result.completion) == ([], None)
    return error


async def generations(api: Gateway, label: str) -> list[Json]:
    """Those with that label, the newest first."""
    listed = (await api.http.get("/v1/generations?limit=100")).json()["data"]
    return [one for one in listed if one["metadata"].get("label") == label]


@asynccontextmanager
async def sdk_named(name: str) -> AsyncGenerator[Sdk, None]:
    """Ready for calls."""
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
    with alone("openai-oldest"):
        if not (home / "ready").exists():
            shutil.rmtree(home, ignore_errors=True)
            run(sys.executable, "-m", "venv", "--without-pip", str(home))
            pip = (sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check")
            run(*pip, "install", "--quiet", "--require-hashes", "-r", str(LOCK_FILE))
            (home / "ready").touch()
    return python


def node() -> str:
    """Node's binary, openai-node installed beside the scripts; skips where there is none. The SDK asks for Node.js 22
    and runs on 20."""
    binary, npm = shutil.which("node"), shutil.which("npm")
    if binary is None or npm is None:
        pytest.skip("Node.js with npm is not installed")
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.removeprefix("v").partition(".")[0]) < 20:
        pytest.skip(f"Node.js {version.strip()} is older than 20")
    ready = NODE / "node_modules" / f".ready-{digest(NODE / 'package-lock.json')}"
    with alone("openai-node"):
        if not ready.exists():
            run(npm, "ci", "--no-audit", "--no-fund", "--loglevel=error", cwd=NODE)
            ready.touch()
    return binary


def documented(language: str) -> str:
    """The README's snippet for the SDK of that language, without the comment that names its file."""
    readme = (ROOT / "README.md").read_text("utf-8")
    [snippet] = re.findall(
        rf"^```{language}\n(?:(?:#|//) \S+\n)?(.*?chat\.completions\.create.*?)^```$", readme, re.DOTALL | re.MULTILINE
    )
    return snippet


async def run_snippet(url: str, language: str, *command: str) -> str:
    """What the README's snippet prints, run as it is but for the address and the key."""
    source = documented(language)
    assert source.count(README_URL) == 1
    process = await asyncio.create_subprocess_exec(
        *command,
        env=clean_environment(PYTHONPATH="", TOKENCAST_API_KEY="key"),
        cwd=NODE,  # where Node finds openai-node
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
def alone(name: str) -> Iterator[None]:
    """Of several processes that run tests, one prepares and the others wait for it."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(*command: str, cwd: Path = ROOT) -> None:
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
