"""Faults of an upstream, from end to end: the text that subscribers see, the ending, and the number of upstream
calls."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager, suppress
from itertools import count
from pathlib import Path

import pytest

from broker.dev.embedded_redis import EmbeddedRedis
from tests.faults.oracle import Said
from tests.faults.subscriber import CompletionSubscriber, Subscriber, client
from tests.servers.tcp import tcp_server
from tests.support import (
    Gateway,
    Service,
    forget_refusals,
    gateway,
    gather,
    request_body,
    service,
    texts,
    upstream_calls,
    wait_until,
    worker,
)
from worker.simulator.text import pieces

LIMITS = {"TOKENCAST_FIRST_TOKEN_TIMEOUT": "1", "TOKENCAST_IDLE_TIMEOUT": "0.7", "TOKENCAST_MAX_DURATION": "20"}
SEED, LENGTH = 7, 20
labels = (f"e{number}" for number in count())


@pytest.fixture(scope="module")
async def short_timeouts(redis: EmbeddedRedis, sim: str) -> AsyncGenerator[Service, None]:
    """A worker with short upstream timeouts."""
    async with worker(redis.url, sim, TOKENCAST_MAX_OUTPUT="100000", **LIMITS) as started:
        yield started


BRIEFLY = {"tokencast": {"queue_timeout": 2}}
"""Options of a request whose upstream refuses it for longer."""

# The result of each fault: the error code (None: completed), the number of pieces shown, and the upstream calls; None:
# at least one, because it is called again until its waiting ends.
FAULTS = {
    # E1, E3: a stream that just ends is not a completion, independent of its contents.
    "fault=truncate": ("upstream_truncated", 5, 1),
    "fault=truncate at=19": ("upstream_truncated", 19, 1),
    "fault=truncate shape=gabforge": ("upstream_truncated", 5, 1),
    "fault=no-blank-line": ("upstream_truncated", 5, 1),
    # ... but either [DONE] or finish_reason is enough.
    "fault=no-done": (None, 20, 1),
    "fault=done-only": (None, 20, 1),
    "shape=gabforge": (None, 20, 1),
    # E2
    "fault=cut": ("upstream_truncated", 5, 1),
    "fault=rst": ("upstream_truncated", 5, 1),
    # E4
    "fault=error-frame": ("sim_error", 5, 1),
    # E5
    "fault=html": ("bad_upstream_response", 0, 1),
    "fault=json-200": ("sim_error", 0, 1),
    "fault=empty": ("bad_upstream_response", 0, 1),
    # E6
    "fault=bad-json": ("bad_upstream_response", 5, 1),
    "fault=bad-utf8": ("bad_upstream_response", 5, 1),
    "fault=bad-utf8-content": ("bad_upstream_response", 5, 1),
    "fault=nan": ("bad_upstream_response", 5, 1),
    # E7, E8
    "fault=silent keepalive=0.1": ("upstream_timeout", 0, 1),
    "fault=stall": ("upstream_timeout", 5, 1),
    "fault=comments keepalive=0.1": ("upstream_timeout", 5, 1),
    # E9
    "fault=429 times=1 retry_after=0.1": (None, 20, 2),
    "fault=503 times=1 retry_after=0.1": (None, 20, 2),
    "fault=429 retry_after=60": ("upstream_rate_limited", 0, 1),
    "fault=400": ("sim_error", 0, 1),
    # E13
    "fault=huge-line": ("output_too_large", 5, 1),
    # E14
    "shape=azure": (None, 20, 1),
    "shape=extra tools=2 reasoning=3": (None, 20, 1),
    # F3
    "fault=redirect": ("bad_upstream_response", 0, 1),
}


@pytest.fixture(autouse=True)
async def usable_upstream(redis: EmbeddedRedis) -> None:
    await forget_refusals(redis.url)


@pytest.mark.parametrize("directive", FAULTS, ids=lambda directive: directive.removeprefix("fault="))
async def test_every_subscriber_sees_the_same_result(
    api: Gateway, sim: str, short_timeouts: Service, directive: str
) -> None:
    code, shown, calls = FAULTS[directive]
    label = next(labels)
    prompt = f"[[sim seed={SEED} length={LENGTH} speed=200 label={label} {directive}]]"
    created = await api.create(request_body(prompt, model="sim", **(BRIEFLY if code else {})))
    said = Said(created["id"], SEED, LENGTH)
    async with client() as http:
        followers = [Subscriber(http, lambda: api.url, said) for _ in range(3)]
        completions = [CompletionSubscriber(http, lambda: api.url, said) for _ in range(2)]
        await gather(*(reader.run() for reader in [*followers, *completions]))
        late = await Subscriber(http, lambda: api.url, said).run()
    ending = "failed" if code else "completed"
    stored = await api.get(created["id"])
    for reader in [*followers, *completions, late]:
        assert reader.shown.complaints == []
        assert reader.shown.ending == ending
        assert reader.shown.text == "".join(pieces(SEED, LENGTH)[:shown]) == stored["text"]
    assert {follower.shown.error for follower in [*followers, late]} == {stored["error"]["code"] if code else None}
    if code and code != "sim_error":  # the upstream's own error codes are passed on unchanged
        assert stored["error"]["code"] == code
    assert stored["status"] == ending
    made = len(await upstream_calls(sim, label))
    if calls is None:
        assert made >= 1
    else:
        assert (made, stored["attempt"]) == (calls, 1)


async def test_a_second_attempt_after_text_is_a_reset(api: Gateway, sim: str, short_timeouts: Service) -> None:
    """E10: only if the request asks for it; otherwise the failure is the end."""
    prompt = f"[[sim seed={SEED} length={LENGTH} speed=100 label=anew fault=cut at=10 times=1]]"
    created = await api.create(request_body(prompt, model="sim", on_upstream_error="restart"))
    said = Said(created["id"], SEED, LENGTH)
    async with client() as http:
        follower = await Subscriber(http, lambda: api.url, said).run()
    assert (follower.shown.complaints, follower.shown.ending, follower.shown.resets) == ([], "completed", 1)
    assert len(await upstream_calls(sim, "anew")) == 2


@pytest.mark.parametrize("fault", ["cut at=10", "cut at=10 times=2 overlap=30", "stall at=3", "error-frame at=19"])
async def test_every_subscriber_sees_one_reply_of_several_calls(
    api: Gateway, sim: str, short_timeouts: Service, fault: str
) -> None:
    """Also those of the chat route, who cannot be told of a second attempt."""
    label, times = next(labels), "" if "times" in fault else "times=1"
    prompt = f"[[sim seed={SEED} length={LENGTH} speed=100 label={label} fault={fault} {times}]]"
    created = await api.create(request_body(prompt, model="sim", on_upstream_error="continue"))
    said = Said(created["id"], SEED, LENGTH)
    async with client() as http:
        followers = [Subscriber(http, lambda: api.url, said) for _ in range(2)]
        completions = [CompletionSubscriber(http, lambda: api.url, said) for _ in range(2)]
        await gather(*(reader.run() for reader in [*followers, *completions]))
        late = await Subscriber(http, lambda: api.url, said).run()
    for reader in [*followers, *completions, late]:
        assert (reader.shown.complaints, reader.shown.ending) == ([], "completed")
        assert reader.shown.text == "".join(pieces(SEED, LENGTH))
    assert [reader.shown.resets for reader in [*followers, late]] == [0, 0, 0]
    assert len(await upstream_calls(sim, label)) == (3 if "times" in fault else 2)


async def test_a_cancel_closes_the_upstream_connection(api: Gateway, sim: str, short_timeouts: Service) -> None:
    """E11, E12: during a stream of a hundred seconds. `test_recovery_times.py` measures how soon."""
    prompt = f"[[sim seed={SEED} length=5000 speed=50 label=cancelled]]"
    created = await api.create(request_body(prompt, model="sim"))
    async with aclosing(api.follow(created["id"])) as stream:
        async for frame in stream:
            if texts([frame]):
                break
        assert (await api.http.post(f"/v1/generations/{created['id']}/cancel")).status_code == 200
        assert [frame.event async for frame in stream][-1] == "cancelled"

    async def closed() -> bool:
        (call,) = await upstream_calls(sim, "cancelled")
        return call["outcome"] == "disconnected"

    await wait_until(closed)


async def test_a_huge_error_body_is_not_read_completely(own_redis: EmbeddedRedis, sim: str) -> None:
    """E13: the body of an error response also comes from the upstream. It does not increase the worker's memory."""
    async with gateway(own_redis.url) as api, worker(own_redis.url, sim) as process:
        small = await api.create(request_body("[[sim fault=500]]", model="sim", **BRIEFLY))
        await api.ended(small["id"])
        before = peak_memory(process)
        huge = await api.create(request_body("[[sim fault=huge-error bytes=60000000]]", model="sim", **BRIEFLY))
        ended = await api.ended(huge["id"])
        assert peak_memory(process) - before < 20_000_000
    assert ended["error"]["code"] == "upstream_error"
    assert len(ended["error"]["message"]) < 3000


async def test_a_frozen_upstream_is_detected(own_redis: EmbeddedRedis) -> None:
    """E16: a connected peer that never answers again, as after a dead NAT entry."""
    async with service("worker.simulator", "--port", "0") as upstream:
        url = (await upstream.says(r"upstream-sim ready on (\S+)"))[1]
        async with gateway(own_redis.url) as api, worker(own_redis.url, url, **LIMITS):
            created = await api.create(request_body("[[sim seed=7 length=500 speed=50]]", model="sim"))
            async with aclosing(api.follow(created["id"])) as stream:
                async for frame in stream:
                    if texts([frame]):
                        break
                upstream.send(signal.SIGSTOP)
                last = [frame async for frame in stream][-1]
            upstream.send(signal.SIGCONT)
    assert last.event == "failed"
    assert last.json["error"]["code"] == "upstream_timeout"


@asynccontextmanager
async def noisy_upstream(seed: int) -> AsyncGenerator[str, None]:
    """A server whose event streams are noise: random bytes and fragments of real streams."""
    chance = random.Random(seed)
    chunk = b'{"choices":[{"delta":{"content":"x"},"index":0}]}'
    fragments = [
        b"data: ",
        b"data: []\n\n",
        b"\n\n",
        b"\r\n",
        b": \n",
        b"event: x\n",
        b"[DONE]",
        b"null",
        b"{}",
        b'"',
        b"\xff\x00",
    ]
    fragments += [chunk, b'{"choices":null}', b'{"choices":[{"index":-1}]}']
    frames = [b"data: " + chunk + b"\n\n"] * 8 + [b"data: [DONE]\n\n"]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):  # the worker disconnects as soon as it has seen enough
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
            order = chance.random()
            for _ in range(chance.randrange(1, 60)):
                kind = chance.random()
                writer.write(
                    chance.choice(frames if kind < order else fragments) if kind < 0.98 else chance.randbytes(9)
                )
            await writer.drain()
        writer.close()

    async with tcp_server(serve) as address:
        yield f"http://{address}/v1"


async def test_noise_from_an_upstream_fails_the_generation_without_a_crash(own_redis: EmbeddedRedis) -> None:
    """E6: every generation has exactly one ending, and the worker survives."""
    async with (
        noisy_upstream(5) as url,
        gateway(own_redis.url) as api,
        worker(own_redis.url, url, **LIMITS) as process,
    ):
        created = [await api.create() for _ in range(150)]
        streams = await gather(*(api.events(generation["id"]) for generation in created))
        assert process.process.returncode is None
    for frames in streams:
        endings = [frame.event for frame in frames if frame.event in ("completed", "failed")]
        assert endings == [frames[-1].event]
    assert {frames[-1].event for frames in streams} == {"completed", "failed"}
    assert "Traceback" not in process.output


def peak_memory(process: Service) -> int:
    """The largest resident size of the process, in bytes."""
    for line in Path(f"/proc/{process.process.pid}/status").read_text("utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")
