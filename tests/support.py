"""Tools of the tests: real processes, a stepped worker on the real scripts, and raw event streams."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import re
import secrets
import shutil
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from broker import connect
from broker.concurrency.cancellation import cancel_and_wait
from broker.dev.embedded_redis import server_binary
from broker.ids import shard_of
from broker.queue.commands import Ticket
from broker.redis.client import Redis, Script
from broker.settings.settings import SIMULATED_KEY
from broker.store import commands, keys
from broker.store.commands import lifecycle_keys
from tests.servers.forked import Process, start_module
from worker.claims import Claim

ROOT = Path(__file__).parent.parent
CLIENT = ROOT / "clients/python"
ENGINES = {"valkey": server_binary(), "redis": shutil.which("redis-server")}
"""Server programs of the two supported engines."""
DEADLINE = 60.0  # seconds; far above the duration of any step on a busy machine, so it only ends a hanging test

# Settings of the machine or the user must not reach the processes under test.
_FOREIGN = ("TOKENCAST_", "OPENAI_", "REDIS_URL", "HOST", "PORT", "GABFORGE_", "PYTEST_")


def clean_environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return {**kept, "PYTHONPATH": f"{ROOT}{os.pathsep}{CLIENT}", "PYTHONUNBUFFERED": "1", **variables}


async def wait_until(condition: Callable[[], Any], what: str = "") -> Any:
    """Poll a condition until it is true, and return its value. It may be a coroutine function."""
    async with asyncio.timeout(DEADLINE):
        while True:
            answer = condition()
            if inspect.isawaitable(answer):
                answer = await answer
            if answer:
                return answer
            await asyncio.sleep(0.01)
    raise AssertionError(what)


class Service:
    """A process under test. Its output is kept line by line."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._more = asyncio.Event()
        self._readers = [asyncio.create_task(self._read(s)) for s in (process.stdout, process.stderr) if s]

    @classmethod
    async def start(cls, *arguments: str, environment: dict[str, str], cwd: Path | None = None) -> Service:
        return cls(await start_module(*arguments, environment=environment, cwd=cwd or ROOT))

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            self.lines.append(line.decode(errors="replace").rstrip("\n"))
            self._more.set()
        self._more.set()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    async def says(self, pattern: str, *, times: int = 1) -> re.Match[str]:
        """Wait for as many lines that match; returns the last. Fails with the output if the process ends first."""
        seen = found = 0
        async with asyncio.timeout(DEADLINE):
            while True:
                for line in self.lines[seen:]:
                    if match := re.search(pattern, line):
                        found += 1
                        if found == times:
                            return match
                seen = len(self.lines)
                if all(reader.done() for reader in self._readers):
                    raise AssertionError(f"ended without {times} lines that match {pattern!r}:\n{self.output}")
                self._more.clear()
                await self._more.wait()

    def send(self, sig: signal.Signals) -> None:
        """Send a signal without the process object, which would poll the process first and so take its exit status."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, sig)

    async def wait(self) -> int:
        async with asyncio.timeout(DEADLINE):
            code = await self.process.wait()
            await asyncio.gather(*self._readers)
        return code

    async def stop(self) -> int:
        """Send SIGTERM repeatedly, and SIGKILL if that is not enough. The pauses are needed, since simultaneous signals
        are merged."""
        for _ in range(50):
            if self.process.returncode is not None:
                break
            self.send(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await self.process.wait()
        else:
            self.send(signal.SIGKILL)
        return await self.wait()


@asynccontextmanager
async def service(*arguments: str, **variables: str) -> AsyncGenerator[Service, None]:
    started = await Service.start(*arguments, environment=clean_environment(**variables))
    try:
        yield started
    finally:
        await started.stop()


@asynccontextmanager
async def gateway(redis_url: str, **variables: str) -> AsyncGenerator[Gateway, None]:
    """A gateway process that is ready, on a free port unless PORT is given."""
    models = "gabforge-coder,sim,sim-*,m"
    settings = {"PORT": "0", "TOKENCAST_DRAIN": "0.2", "TOKENCAST_MODELS": models, **variables}
    async with service("api", REDIS_URL=redis_url, **settings) as process:
        url = (await process.says(r"listening on (http://\S+)"))[1]
        async with httpx2.AsyncClient(base_url=url, timeout=DEADLINE) as client:
            yield Gateway(url, client, process)


@dataclass(frozen=True)
class Gateway:
    url: str
    http: httpx2.AsyncClient
    process: Service

    async def create(self, body: dict[str, Any] | None = None, **headers: str) -> dict[str, Any]:
        response = await self.http.post("/v1/generations", json=body or request_body(), headers=headers)
        assert response.status_code in (200, 202), response.text
        return response.json()

    async def get(self, gid: str) -> dict[str, Any]:
        return (await self.http.get(f"/v1/generations/{gid}")).json()

    async def ended(self, gid: str) -> dict[str, Any]:
        async def look() -> dict[str, Any] | None:
            generation = await self.get(gid)
            return generation if generation["status"] in ("completed", "failed", "cancelled") else None

        return await wait_until(look)

    async def wait_for_subscribers(self, readers: int) -> None:
        """Wait until the gateway has this many subscribers: a task created to read may not have sent its request
        yet."""

        async def all_connected() -> bool:
            found = re.findall(
                r"^tokencast_subscribers\{.*\} (\d+)", (await self.http.get("/metrics")).text, re.MULTILINE
            )
            return sum(map(int, found)) == readers

        await wait_until(all_connected)

    async def events(self, gid: str, query: str = "", **headers: str | bytes) -> list[Frame]:
        """All frames until the response ends."""
        return [frame async for frame in self.follow(gid, query, **headers)]

    async def follow(self, gid: str, query: str = "", **headers: str | bytes) -> AsyncIterator[Frame]:
        async for frame in self.stream("GET", f"/v1/generations/{gid}/events{query}", headers=headers):
            yield frame

    async def stream(self, method: str, path: str, **options: Any) -> AsyncIterator[Frame]:
        async with self.http.stream(method, path, **options) as response:
            assert response.status_code in (200, 204), (response.status_code, await response.aread())
            buffer = b""
            async for data in response.aiter_raw():
                buffer += data
                *blocks, buffer = buffer.split(b"\n\n")
                for block in blocks:
                    yield Frame.parse(block)
            assert not buffer.strip(b": hb\n"), buffer


@dataclass(frozen=True)
class Frame:
    """One block of an event stream."""

    raw: bytes
    id: str | None
    event: str | None
    data: str | None
    comment: bool = False

    @classmethod
    def parse(cls, block: bytes) -> Frame:
        fields: dict[str, str] = {}
        for line in block.decode().split("\n"):
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        return cls(block, fields.get("id"), fields.get("event"), fields.get("data"), "" in fields)

    @property
    def json(self) -> Any:
        return json.loads(self.data or "null")


def texts(frames: list[Frame]) -> str:
    """Choice 0's content in the chunks among these frames."""
    parts: list[str] = []
    for frame in frames:
        if frame.data and frame.data != "[DONE]" and frame.event in (None, "chunk"):
            for choice in frame.json.get("choices") or []:
                if choice.get("index") == 0:
                    parts.append((choice.get("delta") or {}).get("content") or "")
    return "".join(parts)


async def until_text(stream: AsyncIterator[Frame]) -> list[Frame]:
    """The frames up to the first text."""
    frames: list[Frame] = []
    async for frame in stream:
        frames.append(frame)
        if texts(frames):
            break
    return frames


def script(name: str) -> Script:
    """A Lua script by the name of its file, in any package."""
    (path,) = (ROOT / "broker").glob(f"*/lua/{name}.lua")
    return Script(path.parts[-3], name)


def request_body(prompt: str = "Explain the GIL in CPython.", model: str = "m", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": prompt}], **more}


REAPER_OBSERVATION = (15_000, 10**9, 10**14)
"""Arguments of a reaper for its script: its lease, its uninterrupted observation of Redis, and no deadline."""

CLAIM, APPEND, FINISH = Script("store", "claim"), Script("store", "append"), Script("store", "finish")


class Writer:
    """A worker that is stepped by the test: one attempt on the real scripts."""

    def __init__(self, redis: Redis, gid: str) -> None:
        self.redis = redis
        self.gid = gid
        self.attempt = ""
        self.n = 0
        self.text = ""

    @property
    def own(self) -> str:
        return f"{self.attempt}.token"

    async def claim(self, *, begin: bool = True) -> Writer:
        """Claim the next attempt, and begin it, as when the upstream has accepted its call."""
        reply = await self.redis.run(
            CLAIM,
            [*lifecycle_keys(self.gid), keys.epoch(shard_of(self.gid))],
            [self.gid, "token", secrets.randbelow(1024), 60_000, "", 9],
        )
        assert reply[0] == b"OK", reply
        self.attempt, self.n, self.text = reply[1].decode(), 0, ""
        if begin:
            assert await commands.begin(self.redis, self.gid, self.own, "default") == "OK"
        return self

    async def release(self) -> None:
        """Return the generation to the queue, as a worker does that stops."""
        assert await commands.release(self.redis, self.gid, self.own, "worker_stopped")

    async def append(self, *texts: str, kind: str = "c", at: int | None = None) -> bytes:
        """Append chunks that arrived `at` ms after the beginning of the attempt; by default an arbitrary time."""
        chunks = [json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode() for text in texts]
        outcome = await self.append_raw(*chunks, kind=kind, at=at)
        if outcome == b"OK":
            self.text += "".join(texts)
        return outcome

    async def append_raw(self, *chunks: bytes, kind: str = "c", at: int | None = None) -> bytes:
        items: list[Any] = [part for chunk in chunks for part in (kind, self.n if at is None else at, chunk)]
        first = int(self.n == 0)
        reply = await self.redis.run(
            APPEND,
            [keys.meta(self.gid), keys.log(self.gid)],
            [self.own, f"{self.attempt}-", self.n + 1, self.n + len(chunks), 1 << 30, first, *items],
        )
        if reply[0] == b"OK":
            self.n = reply[1]
        return reply[0]

    async def finish(self, status: str = "completed", data: bytes = b'{"finish_reason":"stop","usage":null}') -> bytes:
        error = json.dumps(json.loads(data).get("error")) if status == "failed" else ""
        message = {"role": "assistant", "content": self.text}
        choices = json.dumps([{"index": 0, "message": message, "finish_reason": "stop"}])
        reply = await self.redis.run(
            FINISH,
            lifecycle_keys(self.gid),
            [self.gid, self.own, f"{self.attempt}-", self.n + 1, status, "stop", "", error, choices, self.n,
             "ok" if status == "completed" else "f", self.n, data],
        )  # fmt: skip
        return reply[0]


async def begun(redis: Redis, claim: Claim) -> Claim:
    """Begin a claimed attempt, as when the upstream has accepted its call."""
    assert await commands.begin(redis, claim.gid, claim.own, claim.upstream) == "OK"
    return claim


async def ticket_of(redis: Redis, gid: str) -> Ticket:
    """The ticket of a generation that waits, by its meta."""
    fields = await redis.execute("HMGET", keys.meta(gid), "tn", "tk", "ln", "pr", "es", "ca", "ra")
    tenant, number, lane, priority, tokens, created, run_at = [(field or b"").decode() for field in fields]
    scheduled = int(run_at or 0)
    return Ticket(gid, tenant, int(number), lane, int(priority), int(tokens or 0), scheduled or int(created), scheduled)


@asynccontextmanager
async def upstream_sim(*arguments: str) -> AsyncGenerator[str, None]:
    """The simulated upstream. Yields its base URL."""
    async with service("worker.simulator", "--port", "0", *arguments) as process:
        yield (await process.says(r"upstream-sim ready on (\S+)"))[1]


async def upstream_calls(upstream_url: str, label: str = "") -> list[dict[str, Any]]:
    """The calls of the simulated upstream, of one label or all."""
    async with httpx2.AsyncClient() as http:
        return (await http.get(f"{upstream_url.removesuffix('/v1')}/sim/calls", params={"label": label})).json()


@asynccontextmanager
async def worker(redis_url: str, upstream_url: str, **variables: str) -> AsyncGenerator[Service, None]:
    """A worker process that is ready."""
    settings = {"OPENAI_BASE_URL": upstream_url, "OPENAI_API_KEY": SIMULATED_KEY, **variables}
    async with service("worker", REDIS_URL=redis_url, **settings) as process:
        await process.says(r"ready")
        yield process


@asynccontextmanager
async def in_background(*coroutines: Any) -> AsyncGenerator[None, None]:
    """Run coroutines during the block. None of them may end by itself."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield
        assert not any(task.done() for task in tasks)
    finally:
        await cancel_and_wait(tasks)


async def clients_by_last_command(redis: Redis, command: str) -> list[str]:
    """Redis's connections whose last command is this one. A blocking command waits, unless it was just answered."""
    listed: bytes = await redis.execute("CLIENT", "LIST")
    return [line for line in listed.decode().splitlines() if f"cmd={command}" in line]


async def tell_waiting(redis: Redis, gid: str, reason: str, retry_at: float | None = None) -> None:
    """Write a `waiting` event of a generation that no worker has."""
    data = json.dumps({"reason": reason, "retry_at": retry_at}).encode()
    assert await commands.note(redis, gid, reason, None if retry_at is None else int(retry_at * 1000), data)


async def forget_refusals(redis_url: str) -> None:
    """Remove the state of all upstreams from the queue: an upstream that refused a call in one test is not called for
    some time, which would delay the next test."""
    async with connect(redis_url) as broker:
        for name in await broker.queue.redis.execute("KEYS", keys.upstream("*")):
            await broker.queue.redis.execute("DEL", name)


async def gather(*work: Awaitable[Any]) -> list[Any]:
    """Like asyncio.gather, with the deadline of all other waits."""
    async with asyncio.timeout(DEADLINE):
        return list(await asyncio.gather(*work))
