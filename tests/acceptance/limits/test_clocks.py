"""Machines with wrong clocks: only the clock of Redis is used, so they have no effect."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import cache, partial
from pathlib import Path

import pytest

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis, server_binary
from broker.queue.tickets import granted_name
from broker.redis.client import Redis
from broker.settings.settings import Settings
from broker.store import keys
from tests.faults.scene import QUICK
from tests.support import Gateway, gateway, gather, request_body, texts, until_text, wait_until, worker
from worker.simulator.text import pieces

pytestmark = pytest.mark.clock
HOUR = 3600.0


@cache
def library() -> str:
    """The path of libfaketime, in its variant for threads."""
    faketime = shutil.which("faketime")
    if faketime is None:
        pytest.skip("skipped: libfaketime is not installed")
    run = subprocess.run([faketime, "-m", "-f", "+1", "printenv", "LD_PRELOAD"], capture_output=True, text=True)
    return run.stdout.strip()


def clock_offset(seconds: float) -> dict[str, str]:
    """Environment variables that set a process's clock off by this. Its waits and timeouts are unaffected."""
    faked = {"LD_PRELOAD": library(), "FAKETIME": f"{seconds:+g}", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    return {**QUICK, **faked}


def sim_request(directive: str) -> dict[str, object]:
    return request_body(f"[[sim {directive}]]", model="sim")


async def redis_time(redis: Redis) -> float:
    seconds, micros = await redis.execute("TIME")
    return int(seconds) + int(micros) / 1e6


@pytest.mark.parametrize(("gateways", "workers"), [(30, -30), (-HOUR, HOUR)])
async def test_a_generation_runs_normally_with_wrong_clocks(
    own_redis: EmbeddedRedis, sim: str, gateways: float, workers: float
) -> None:
    """It is claimed immediately, runs for longer than its lease, and its times are in order. Each process warns that
    its clock is wrong, and by how much."""
    async with (
        connect(own_redis.url) as broker,
        gateway(own_redis.url, **clock_offset(gateways)) as api,
        worker(own_redis.url, sim, **clock_offset(workers)) as process,
    ):
        redis = broker.store.redis
        before = await redis_time(redis)
        created = await api.create(sim_request("seed=2 length=150 speed=30") | {"ttl_seconds": 100})
        frames = await api.events(created["id"])
        assert [f.event for f in frames if not f.comment][-1] == "completed"
        assert texts(frames) == "".join(pieces(2, 150))
        ended = await api.get(created["id"])
        times = [ended[name] for name in ("created_at", "started_at", "first_token_at", "ended_at")]
        in_order = [before - 1, *times, await redis_time(redis)]
        assert in_order == sorted(in_order)
        assert ended["attempt"] == 1
        assert ended["started_at"] - ended["created_at"] < 10
        assert ended["ended_at"] - ended["started_at"] > 4, "longer than two leases"
        assert frames[0].json["created_at"] == ended["created_at"]
        left = await redis.execute("PTTL", keys.log(created["id"]))
        assert 100_000 - 1000 * (await redis_time(redis) - ended["ended_at"] + 1) < left <= 100_000
        for each, wrong in ((api.process, gateways), (process, workers)):
            said = await each.says(r"WARNING.* clock is (\d+\.\d) s (ahead of|behind)")
            assert float(said[1]) == pytest.approx(abs(wrong), abs=5)
            assert said[2] == ("ahead of" if wrong > 0 else "behind")


async def test_ids_are_in_the_order_of_creation(own_redis: EmbeddedRedis) -> None:
    """Ids of gateways whose clocks are two hours apart; also in the list, newest first, and in its pages."""
    async with (
        gateway(own_redis.url, **clock_offset(HOUR)) as early,
        gateway(own_redis.url, **clock_offset(-HOUR)) as late,
        gateway(own_redis.url) as right,
    ):
        made: list[str] = []
        for api in (early, late, right) * 3:
            made.append((await api.create())["id"])
            await asyncio.sleep(0.002)  # the ids of one millisecond have no order
        assert made == sorted(made)
        listed: list[str] = []
        while len(listed) < len(made):
            after = f"&after={listed[-1]}" if listed else ""
            page = (await late.http.get(f"/v1/generations?limit=2{after}")).json()["data"]
            listed += [generation["id"] for generation in page]
        assert listed == made[::-1]


async def test_a_takeover_waits_for_the_lease_with_wrong_clocks(own_redis: EmbeddedRedis, sim: str) -> None:
    """Two workers whose clocks are two hours apart: while one lives, the other does not take its generation."""
    async with (
        gateway(own_redis.url, **clock_offset(HOUR)) as api,
        worker(own_redis.url, sim, **clock_offset(-HOUR)) as doomed,
        worker(own_redis.url, sim, **clock_offset(HOUR)) as other,
    ):
        both = {doomed: "", other: ""}
        while not all(both.values()):
            gid = (await api.create(sim_request("seed=4 length=400 speed=60")))["id"]
            await wait_until(lambda gid=gid: any(f"{gid}: attempt 1" in each.output for each in both))
            both[doomed if f"{gid}: attempt 1" in doomed.output else other] = gid
        async with aclosing(api.follow(both[doomed])) as stream:
            frames = await until_text(stream)
            doomed.send(signal.SIGKILL)
            frames += [frame async for frame in stream if not frame.comment]
        resets = [frame for frame in frames if frame.event == "reset"]
        assert [frame.json for frame in resets] == [{"attempt": 2, "reason": "worker_lost", "upstream": "default"}]
        assert texts(frames[frames.index(resets[0]) :]) == "".join(pieces(4, 400))
        kept = await api.ended(both[other])
        assert (kept["status"], kept["attempt"]) == ("completed", 1)


async def test_a_running_generation_is_put_back_with_wrong_clocks(own_redis: EmbeddedRedis, sim: str) -> None:
    """The age of the new data set is also determined by Redis alone: one that another process has begun is not too
    old."""
    async with (
        gateway(own_redis.url, **clock_offset(-2 * HOUR)) as api,
        worker(own_redis.url, sim, **clock_offset(HOUR)) as process,
    ):
        gid = (await api.create(sim_request("seed=6 length=300 speed=40")))["id"]
        async with aclosing(api.follow(gid)) as stream:
            frames = await until_text(stream)
            process.send(signal.SIGSTOP)  # so that the gateway is the first to use the empty server
            await own_redis.restart()
            await wait_until(partial(_created_in, api, gid[14:16]))
            process.send(signal.SIGCONT)
            frames += [frame async for frame in stream if not frame.comment]
        assert [frame.event for frame in frames][-1] == "completed"
        assert texts(frames) == "".join(pieces(6, 300))


async def _created_in(api: Gateway, shard: str) -> bool:
    """Create a generation; return whether it is in this shard. Without an idempotency key no creation has to wait until
    lost data may have been restored, which is as long as the generation is waited for."""
    response = await api.http.post("/v1/generations", json=sim_request("length=1"))
    return response.status_code == 202 and response.json()["id"][14:16] == shard


async def test_a_ticket_is_due_immediately_after_a_failed_claim(sim: str) -> None:
    """For every worker, independent of the clock of the one that returned the ticket."""
    async with EmbeddedRedis() as logs, EmbeddedRedis() as queue:
        settings = Settings(REDIS_URL=queue.url, streams_url=logs.url)  # pyright: ignore[reportCallIssue]
        async with connect(settings=settings) as broker:
            gid = (await broker.enqueue(sim_request("length=3 speed=0"))).id
            await broker.store.redis.execute("CONFIG", "SET", "maxmemory", 1)  # claims cannot be written
            async with worker(queue.url, sim, TOKENCAST_STREAMS_URL=logs.url, **clock_offset(HOUR)):
                await wait_until(lambda: broker.queue.redis.execute("EXISTS", f"arq:retry:{granted_name(gid, 1)}"))
            await broker.store.redis.execute("CONFIG", "SET", "maxmemory", 0)
            async with worker(queue.url, sim, TOKENCAST_STREAMS_URL=logs.url):
                (names,) = await gather(_names(broker, gid))
            assert names[-1] == "completed"


async def _names(broker: Broker, gid: str) -> list[str]:
    return [event.name async for event in broker.follow(gid)]


async def test_the_time_of_a_retry_is_by_the_redis_clock(own_redis: EmbeddedRedis, sim: str) -> None:
    async with (
        gateway(own_redis.url) as api,
        worker(own_redis.url, sim, **clock_offset(HOUR)),
    ):
        gid = (await api.create(sim_request("fault=429 times=1 retry_after=1 label=clock length=3 speed=0")))["id"]
        frames = await api.events(gid)
        [waiting] = [frame.json for frame in frames if frame.event == "waiting"]
        assert frames[-1].event == "completed"
        assert abs(waiting["retry_at"] - time.time()) < 60


async def test_a_token_is_valid_at_gateways_with_other_clocks(own_redis: EmbeddedRedis) -> None:
    async with (
        gateway(own_redis.url, **clock_offset(HOUR)) as early,
        gateway(own_redis.url, **clock_offset(-HOUR)) as late,
    ):
        gid = (await early.create())["id"]
        for maker, reader in ((early, late), (late, early)):
            body = {"ttl_seconds": 2}
            token = (await maker.http.post(f"/v1/generations/{gid}/token", json=body)).json()
            assert abs(token["expires_at"] - time.time() - 2) < 5
            assert (await reader.http.get(f"/v1/generations/{gid}?token={token['token']}")).status_code == 200
            (frames,) = await gather(reader.events(gid, f"?token={token['token']}"))  # until the token expires
            assert frames[0].event == "created"


async def test_workers_with_clocks_a_day_apart_see_each_other(own_redis: EmbeddedRedis, sim: str) -> None:
    async with (
        connect(own_redis.url) as broker,
        worker(own_redis.url, sim, **clock_offset(25 * HOUR)),
        worker(own_redis.url, sim, **clock_offset(-25 * HOUR)),
        worker(own_redis.url, sim),
    ):
        queue = broker.queue.redis

        async def all_registered() -> bool:
            return await queue.execute("ZCARD", keys.WORKERS) == 3

        await wait_until(all_registered)
        flat, now = await queue.execute("ZRANGE", keys.WORKERS, 0, -1, "WITHSCORES"), await redis_time(queue)
        assert all(abs(float(seen) / 1000 - now) < 60 for seen in flat[1::2])


# --- steps of the Redis clock ---------------------------------------------------------------------------------------


class SteppedRedis:
    """A server whose clock is set while it runs; its monotonic clock is unaffected."""

    def __init__(self, directory: Path) -> None:
        self._offset = directory / "offset"
        self.binary = directory / "redis-server"
        self.step(0)
        faked = {"LD_PRELOAD": library(), "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_NO_CACHE": "1"}
        faked["FAKETIME_TIMESTAMP_FILE"] = str(self._offset)
        words = shlex.join([*(f"{name}={value}" for name, value in faked.items()), server_binary()])
        self.binary.write_text(f'#!/bin/sh\nexec env {words} "$@"\n')
        self.binary.chmod(0o755)

    def step(self, seconds: float) -> None:
        """Set the clock `seconds` ahead of this machine's clock, or behind it if negative."""
        self._offset.with_suffix(".new").write_text(f"{seconds:+g}\n")
        self._offset.with_suffix(".new").replace(self._offset)


@pytest.fixture
async def stepped(tmp_path: Path) -> AsyncGenerator[tuple[EmbeddedRedis, SteppedRedis], None]:
    clock = SteppedRedis(tmp_path)
    async with EmbeddedRedis(binary=str(clock.binary)) as redis:
        yield redis, clock


async def clock_lead(redis: EmbeddedRedis) -> float:
    async with connect(redis.url) as broker:
        return await redis_time(broker.store.redis) - time.time()


async def test_a_step_forward_takes_no_generation_from_its_worker(
    stepped: tuple[EmbeddedRedis, SteppedRedis], sim: str
) -> None:
    """All leases expire at the same moment, although no worker was away."""
    redis, clock = stepped
    async with gateway(redis.url, **QUICK) as api, worker(redis.url, sim, **QUICK):
        gids = [(await api.create(sim_request(f"seed={n} length=200 speed=40")))["id"] for n in range(10)]
        await wait_until(partial(_all_run, api, gids))
        clock.step(20)
        assert await clock_lead(redis) == pytest.approx(20, abs=5)
        assert [(await api.ended(gid))["attempt"] for gid in gids] == [1] * 10


async def test_a_step_back_delays_no_takeover(stepped: tuple[EmbeddedRedis, SteppedRedis], sim: str) -> None:
    """By the leases from before the step, the dead worker would live for an hour."""
    redis, clock = stepped
    async with gateway(redis.url, **QUICK) as api:
        async with worker(redis.url, sim, **QUICK) as doomed:
            gid = (await api.create(sim_request("seed=3 length=400 speed=40")))["id"]
            await wait_until(partial(_all_run, api, [gid]))
            doomed.send(signal.SIGKILL)
            clock.step(-HOUR)
        assert await clock_lead(redis) == pytest.approx(-HOUR, abs=5)
        async with worker(redis.url, sim, **QUICK):
            assert (await api.ended(gid))["attempt"] == 2


async def test_a_worker_keeps_its_lease_over_a_step_back(stepped: tuple[EmbeddedRedis, SteppedRedis], sim: str) -> None:
    redis, clock = stepped
    async with gateway(redis.url, **QUICK) as api, worker(redis.url, sim, **QUICK), connect(redis.url) as broker:
        gid = (await api.create(sim_request("seed=3 length=300 speed=40")))["id"]
        await wait_until(partial(_all_run, api, [gid]))
        clock.step(-HOUR)

        async def renewed() -> bool:
            till = int(await broker.store.redis.execute("HGET", keys.meta(gid), "le")) / 1000
            return till < await redis_time(broker.store.redis) + 10

        await wait_until(renewed)
        assert (await api.ended(gid))["attempt"] == 1


async def _all_run(api: Gateway, gids: list[str]) -> bool:
    return all([(await api.get(gid))["first_token_at"] for gid in gids])
