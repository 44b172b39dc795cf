"""Requests of many kilobytes: parsed in a thread, with the same results as small ones."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.requests import Request

from api.requests import read_request
from broker import connect
from broker import json_pieces as pieces
from broker.broker import QUICK
from broker.errors import InvalidRequest
from broker.request.body import CompletionRequest
from broker.settings.settings import Settings
from tests.support import gather, request_body


class LoopIterations:
    """Counts iterations of the event loop."""

    def __init__(self) -> None:
        self.count = 0

    async def run(self) -> None:
        while True:
            self.count += 1
            await asyncio.sleep(0)


async def read(body: bytes, iterations: LoopIterations | None = None) -> tuple[CompletionRequest, int]:
    """The request parsed from a body, and the number of loop iterations between arrival and result."""
    iterations = iterations or LoopIterations()
    arrived = 0

    async def receive() -> dict[str, Any]:
        nonlocal arrived
        arrived = iterations.count
        return {"type": "http.request", "body": body}

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b""}
    async with connect(settings=Settings(max_body=64 * 1024 * 1024)) as broker:
        return await read_request(Request(scope, receive), broker, "default"), iterations.count - arrived


def picture(size: int) -> list[dict[str, Any]]:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "QUJD" * (size // 4)}}
    return [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, part]}]


@pytest.mark.parametrize(
    "messages",
    [picture(8 * pieces.PIECE), [{"role": "user", "content": "word " * 200}] * 8_000],
    ids=["one picture", "many messages"],
)
async def test_the_event_loop_runs_while_a_large_body_is_parsed(messages: list[dict[str, Any]]) -> None:
    """Parsed in the event loop itself, the body would be done in the next iteration."""
    iterations = LoopIterations()
    counting = asyncio.create_task(iterations.run())
    body = json.dumps({"model": "m", "messages": messages}).encode()
    (answer,) = await gather(read(body, iterations))
    counting.cancel()
    asked, passed = answer
    assert json.loads(asked.upstream)["messages"] == messages
    assert passed >= 5


async def test_a_fingerprint_does_not_depend_on_the_formatting_of_the_body() -> None:
    """Key order, white space and escapes do not matter."""
    body = {**request_body(), "messages": [{"role": "user", "content": "ö😀" * pieces.PIECE}]}
    plain, _ = await read(json.dumps(body).encode())
    other, _ = await read(json.dumps(dict(reversed(body.items())), indent=2, ensure_ascii=False).encode())
    assert plain.fingerprint == other.fingerprint
    body["messages"][0]["content"] += "."
    changed, _ = await read(json.dumps(body).encode())
    assert changed.fingerprint != plain.fingerprint


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"model":"m","messages":[' + b'"' + b"x" * QUICK + b'"]}', "invalid_type"),
        (b'{"model":"m","messages":["' + b"x" * 2 * pieces.PIECE, "invalid_json"),
        (b'{"model":"m","messages":["' + b"x" * 2 * pieces.PIECE + b'\xff"]}', "invalid_json"),
    ],
    ids=["an invalid message", "cut off", "not UTF-8"],
)
async def test_an_invalid_large_body_is_refused(body: bytes, code: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await read(body)
    assert refused.value.code == code
