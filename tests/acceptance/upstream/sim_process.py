"""The simulated upstream as a process, and a strict client of its responses."""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

from tests.support import DEADLINE, ROOT


@contextmanager
def simulator(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A running simulator's base URL and process."""
    command = [sys.executable, "-m", "worker.simulator", "--port", "0", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            ready = re.fullmatch(r"upstream-sim ready on (http://127\.0\.0\.1:\d+/v1)\n", process.stdout.readline())
            assert ready
            yield ready[1], process
        finally:
            process.kill()


@dataclass(frozen=True, slots=True)
class Answer:
    """The received part of a response, and the error that ended it."""

    status: int
    headers: httpx2.Headers
    body: bytes
    error: Exception | None

    @property
    def chunks(self) -> list[Any]:
        """The chunks, read according to the SSE specification: a blank line dispatches an event."""
        lines = self.body.replace(b"\r\n", b"\n")
        blocks = [block.split(b"\n") for block in lines.split(b"\n\n")[:-1]]
        data = [b"\n".join(line[6:] for line in block if line.startswith(b"data: ")) for block in blocks]
        return [json.loads(each) for each in data if each not in (b"", b"[DONE]")]

    @property
    def done(self) -> bool:
        return bool(re.search(rb"^data: \[DONE\]\r?\n\r?\n$", self.body, re.MULTILINE))

    @property
    def finish(self) -> str | None:
        reasons = [choice.get("finish_reason") for chunk in self.chunks for choice in chunk.get("choices", ())]
        return next((reason for reason in reasons if reason), None)

    def text(self, index: int = 0, field: str = "content") -> str:
        choices = [choice for chunk in self.chunks for choice in chunk.get("choices", ())]
        deltas = [choice.get("delta", {}) for choice in choices if choice["index"] == index]
        return "".join(delta.get(field) or "" for delta in deltas)

    @property
    def tool_calls(self) -> list[tuple[str, str, str]]:
        """Id, name and arguments so far of choice 0's tool calls; each new id begins a new one."""
        found: list[tuple[str, str, str]] = []
        for chunk in self.chunks:
            for piece in chunk["choices"][0]["delta"].get("tool_calls", ()):
                if "id" in piece:
                    found.append((piece["id"], piece["function"]["name"], ""))
                found[-1] = (*found[-1][:2], found[-1][2] + piece["function"]["arguments"])
        return found


def body(directive: str, model: str = "sim", **more: Any) -> dict[str, Any]:
    content = f"Say something. [[sim seed=7 speed=0 {directive}]]"
    return {"model": model, "stream": True, "messages": [{"role": "user", "content": content}], **more}


async def ask(url: str, directive: str = "", model: str = "sim", **more: Any) -> Answer:
    return await post(url, body(directive, model, **more))


async def post(url: str, request: dict[str, Any], headers: dict[str, str] | None = None) -> Answer:
    received = bytearray()
    error: Exception | None = None
    async with (
        httpx2.AsyncClient(timeout=DEADLINE) as client,
        client.stream("POST", url + "/chat/completions", json=request, headers=headers) as response,
    ):
        try:
            async for some in response.aiter_bytes():
                received += some
        except httpx2.HTTPError as broken:
            error = broken
    return Answer(response.status_code, response.headers, bytes(received), error)


async def calls(url: str, label: str) -> list[Any]:
    async with httpx2.AsyncClient() as client:
        return (await client.get(url.removesuffix("/v1") + "/sim/calls", params={"label": label})).json()


async def call_of(url: str, label: str, *, ended: bool = True, seconds: float = DEADLINE) -> Any:
    """The only call with this label, after its end, or as soon as it is known."""
    deadline = time.monotonic() + seconds
    while not (found := await calls(url, label)) or (ended and found[0]["outcome"] is None):
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.005)
    [call] = found
    return call


@asynccontextmanager
async def socket_to(
    url: str, request: dict[str, Any]
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A raw connection on which `request` has been sent."""
    address, data = httpx2.URL(url), json.dumps(request).encode()
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: sim\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            % len(data)
            + data
        )
        yield reader, writer
    finally:
        writer.close()
