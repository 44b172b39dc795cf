"""The data of version 0.1.0: new processes start on what its gateway and worker left in Redis when they were killed.

`data/redis-0.1.0.json` was recorded from real processes of that version: one generation had ended, one was running, the
ticket of a third was parked because its tenant may have one running generation, and that of a fourth was in the queue.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import aiohttp
import msgspec
import pytest

from broker import connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.redis.client import Argument
from broker.store import keys
from tests.faults.oracle import Said, Shown
from tests.faults.scene import queue_is_empty
from tests.faults.subscriber import Subscriber
from tests.support import Gateway, gateway, gather, request_body, worker

RECORDED = Path(__file__).parent / "data/redis-0.1.0.json"
KEY = "tc_" + "a" * 40
TENANT = "anna"
SETTINGS = {
    "TOKENCAST_LEASE": "3",
    "TOKENCAST_API_KEYS": f"{TENANT}:{hashlib.sha256(KEY.encode()).hexdigest()}",
    "TOKENCAST_TENANT_RUNNING": "1",
}
ENDED = request_body("[[sim label=ended seed=1 length=5 speed=0]]", model="sim", metadata={"label": "ended"})
"""The request of the generation that had ended, which had an Idempotency-Key."""


class Recording(msgspec.Struct):
    """`recorded_ms`: the time of the recording. `commands`: they write its keys."""

    recorded_ms: int
    generations: dict[str, str]
    commands: list[list[str]]


def recording() -> Recording:
    """What was recorded, with its times (unix ms) moved to now."""
    text = RECORDED.read_text("utf-8")
    at = msgspec.json.decode(text, type=Recording).recorded_ms
    later = int(time.time() * 1000) - at
    near = str(at)[:3]  # of seven days before and after
    return msgspec.json.decode(re.sub(rf"\b{near}\d{{10}}\b", lambda ms: str(int(ms[0]) + later), text), type=Recording)


@pytest.fixture
async def left(sim: str) -> AsyncGenerator[tuple[Gateway, Recording, str]]:
    """A new gateway and worker on the restored data, the recording, and the URL of Redis."""
    found = recording()
    async with EmbeddedRedis() as redis:
        async with connect(redis.url) as broker:
            for command in found.commands:
                words: list[Argument] = [*command]
                await broker.queue.redis.pipeline([tuple(words), ("EXPIRE", command[1], 3600)])
        async with gateway(redis.url, **SETTINGS) as api, worker(redis.url, sim, **SETTINGS):
            yield api, found, redis.url


async def shown(http: aiohttp.ClientSession, api: Gateway, said: Said) -> Shown:
    """What a reader of a generation gets, from its first event."""
    return (await Subscriber(http, lambda: api.url, said).run()).shown


async def test_each_generation_of_the_old_version_ends(left: tuple[Gateway, Recording, str]) -> None:
    """They run, with one reset for the one whose worker was killed; the ended one is read, and its key replayed."""
    api, found, redis_url = left
    of = found.generations
    said = [Said(of["ended"], 1, 5), Said(of["running"], 2, 30), Said(of["parked"], 3, 5), Said(of["queued"], 4, 5)]
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {KEY}"}) as http:
        texts = await gather(*(shown(http, api, each) for each in said))
        assert [one.complaints for one in texts] == [[]] * 4
        assert [(one.ending, one.text == one.said.text, one.resets) for one in texts] == [
            ("completed", True, resets) for resets in (0, 1, 0, 0)
        ]
        url, key = f"{api.url}/v1/generations", {"idempotency-key": "once"}
        async with http.post(url, json=ENDED, headers=key) as response:
            assert (response.status, (await response.json())["id"]) == (200, of["ended"])
        async with http.post(url, json=request_body("Another.", model="sim"), headers=key) as response:
            assert response.status == 422
        async with http.get(url) as response:
            assert {each["id"] for each in (await response.json())["data"]} == set(of.values())
    await queue_is_empty(redis_url)
    async with connect(redis_url) as broker:
        assert await broker.queue.redis.execute("EXISTS", keys.OLD_QUEUE, keys.old_parked(TENANT)) == 0
