"""Machines whose clocks are wrong: only Redis's counts, so nothing is different."""

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
from broker.redis.client import Redis
from broker.settings.settings import Settings
from broker.store import keys
from tests.support import Gateway, gateway, gather, request_body, texts, until_text, wait_until, worker
from worker.simulator.text import pieces

pytestmark = pytest.mark.clock
HOUR = 3600.0
QUICK = {"TOKENCAST_LEASE": "2", "TOKENCAST_HEARTBEAT": "0.5"}


@cache
def library() -> str:
    """libfaketime, the variant for threads."""
    faketime = shutil.which("faketime")
    if faketime is None:
        pytest.skip("not run: there is no libfaketime")
    run = subprocess.run([faketime, "-m", "-f", "+1", "printenv", "LD_PRELOAD"], capture_output=True, text=True)
    return run.stdout.strip()


def wrong_by(seconds: float) -> dict[str, str]:
    """What a process's environment needs for that. Its waits and timeouts are as long as ever."""
    faked = {"LD_PRELOAD": library(), "FAKETIME": f"{seconds:+g}", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    return {**QUICK, **faked}


def asking(directive: str) -> dict[str, object]:
    return request_body(f"[[sim {directive}]]", model="sim")


async def redis_time(redis: Redis) -> float:
    seconds, micros = await redis.execute("TIME")
    return int(seconds) + int(micros) / 1e6


@pytest.mark.parametrize(("gateways", "workers"), [(30, -30), (-HOUR, HOUR)])
async def test_a_generation_runs_as_ever(own_redis: EmbeddedRedis, sim: str, gateways: float, workers: float) -> None:
    """Taken at once, longer than its lease, at times that follow each other; each process says that its clock is
    wrong, and by how much."""
    async with (
        connect(own_redis.url) as broker,
        gateway(own_redis.url, **wrong_by(gateways)) as api,
        worker(own_redis.url, sim, **wrong_by(workers)) as process,
    ):
        redis = broker.store.redis
        before = await redis_time(redis)
        created = await api.create(asking("seed=2 length=150 speed=30") | {"ttl_seconds": 100})
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


async def test_ids_are_in_the_order_in_which_they_were_given(own_redis: EmbeddedRedis) -> None:
    """By gateways that are two hours apart; the list, newest first, and its pages."""
    async with (
        gateway(own_redis.url, **wrong_by(HOUR)) as early,
        gateway(own_redis.url, **wrong_by(-HOUR)) as late,
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


async def test_a_takeover_takes_a_lease_and_none_comes_early(own_redis: EmbeddedRedis, sim: str) -> None:
    """Two workers, two hours apart: neither takes what the other holds, for as long as it lives."""
    async with (
        gateway(own_redis.url, **wrong_by(HOUR)) as api,
        worker(own_redis.url, sim, **wrong_by(-HOUR)) as doomed,
        worker(own_redis.url, sim, **wrong_by(HOUR)) as other,
    ):
        both = {doomed: "", other: ""}
        while not all(both.values()):
            gid = (await api.create(asking("seed=4 length=400 speed=60")))["id"]
            await wait_until(lambda gid=gid: any(f"{gid}: attempt 1" in each.output for each in both))
            both[doomed if f"{gid}: attempt 1" in doomed.output else other] = gid
        async with aclosing(api.follow(both[doomed])) as stream:
            frames = await until_text(stream)
            doomed.send(signal.SIGKILL)
            frames += [frame async for frame in stream if not frame.comment]
        resets = [frame for frame in frames if frame.event == "reset"]
        assert [frame.json for frame in resets] == [{"attempt": 2, "reason": "worker_lost"}]
        assert texts(frames[frames.index(resets[0]) :]) == "".join(pieces(4, 400))
        kept = await api.ended(both[other])
        assert (kept["status"], kept["attempt"]) == ("completed", 1)


async def test_what_ran_is_put_back_after_redis_lost_it(own_redis: EmbeddedRedis, sim: str) -> None:
    """The new data set's age, too, is told by Redis alone: one that somebody else has begun is not too old."""
    async with (
        gateway(own_redis.url, **wrong_by(-2 * HOUR)) as api,
        worker(own_redis.url, sim, **wrong_by(HOUR)) as process,
    ):
        gid = (await api.create(asking("seed=6 length=300 speed=40")))["id"]
        async with aclosing(api.follow(gid)) as stream:
            frames = await until_text(stream)
            process.send(signal.SIGSTOP)  # the gateway is to be the first in the empty server
            await own_redis.restart()
            await wait_until(partial(_created_in, api, gid[14:16]))
            process.send(signal.SIGCONT)
            frames += [frame async for frame in stream if not frame.comment]
        assert [frame.event for frame in frames][-1] == "completed"
        assert texts(frames) == "".join(pieces(6, 300))


async def _created_in(api: Gateway, shard: str) -> bool:
    """Create a generation; return whether it is in this shard. Without an idempotency key no creation has to wait until
    lost data may have been restored, which is as long as the generation is waited for."""
    response = await api.http.post("/v1/generations", json=asking("length=1"))
    return response.status_code == 202 and response.json()["id"][14:16] == shard


async def test_a_ticket_that_could_not_be_claimed_is_due_again_at_once(sim: str) -> None:
    """For everybody, whatever clock the worker went by that had to put it back."""
    async with EmbeddedRedis() as logs, EmbeddedRedis() as queue:
        settings = Settings(REDIS_URL=queue.url, streams_url=logs.url)  # pyright: ignore[reportCallIssue]
        async with connect(settings=settings) as broker:
            gid = (await broker.enqueue(asking("length=3 speed=0"))).id
            await broker.store.redis.execute("CONFIG", "SET", "maxmemory", 1)  # no claim can be written
            async with worker(queue.url, sim, TOKENCAST_STREAMS_URL=logs.url, **wrong_by(HOUR)):
                await wait_until(lambda: broker.queue.redis.execute("EXISTS", f"arq:retry:{gid}.1"))
            await broker.store.redis.execute("CONFIG", "SET", "maxmemory", 0)
            async with worker(queue.url, sim, TOKENCAST_STREAMS_URL=logs.url):
                (names,) = await gather(_names(broker, gid))
            assert names[-1] == "completed"


async def _names(broker: Broker, gid: str) -> list[str]:
    return [event.name async for event in broker.follow(gid)]


async def test_the_time_of_a_retry_is_one_that_readers_can_use(own_redis: EmbeddedRedis, sim: str) -> None:
    async with (
        gateway(own_redis.url) as api,
        worker(own_redis.url, sim, **wrong_by(HOUR)),
    ):
        gid = (await api.create(asking("fault=429 times=1 retry_after=1 label=clock length=3 speed=0")))["id"]
        frames = await api.events(gid)
        [waiting] = [frame.json for frame in frames if frame.event == "waiting"]
        assert frames[-1].event == "completed"
        assert abs(waiting["retry_at"] - time.time()) < 60


async def test_a_token_of_one_gateway_is_as_good_at_the_others(own_redis: EmbeddedRedis) -> None:
    async with (
        gateway(own_redis.url, **wrong_by(HOUR)) as early,
        gateway(own_redis.url, **wrong_by(-HOUR)) as late,
    ):
        gid = (await early.create())["id"]
        for maker, reader in ((early, late), (late, early)):
            body = {"ttl_seconds": 2}
            token = (await maker.http.post(f"/v1/generations/{gid}/token", json=body)).json()
            assert abs(token["expires_at"] - time.time() - 2) < 5
            assert (await reader.http.get(f"/v1/generations/{gid}?token={token['token']}")).status_code == 200
            (frames,) = await gather(reader.events(gid, f"?token={token['token']}"))  # until the token ends
            assert frames[0].event == "created"


async def test_workers_that_are_a_day_apart_see_each_other(own_redis: EmbeddedRedis, sim: str) -> None:
    async with (
        connect(own_redis.url) as broker,
        worker(own_redis.url, sim, **wrong_by(25 * HOUR)),
        worker(own_redis.url, sim, **wrong_by(-25 * HOUR)),
        worker(own_redis.url, sim),
    ):
        queue = broker.queue.redis

        async def all_there() -> bool:
            return await queue.execute("ZCARD", keys.WORKERS) == 3

        await wait_until(all_there)
        flat, now = await queue.execute("ZRANGE", keys.WORKERS, 0, -1, "WITHSCORES"), await redis_time(queue)
        assert all(abs(float(seen) / 1000 - now) < 60 for seen in flat[1::2])


# --- Redis's own clock is set -----------------------------------------------------------------------------------------


class SteppedRedis:
    """A server whose clock is set while it runs; its monotonic clock stays right."""

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
        """`seconds`: ahead of this machine's clock; negative: behind it."""
        self._offset.with_suffix(".new").write_text(f"{seconds:+g}\n")
        self._offset.with_suffix(".new").replace(self._offset)


@pytest.fixture
async def stepped(tmp_path: Path) -> AsyncGenerator[tuple[EmbeddedRedis, SteppedRedis], None]:
    clock = SteppedRedis(tmp_path)
    async with EmbeddedRedis(binary=str(clock.binary)) as redis:
        yield redis, clock


async def ahead(redis: EmbeddedRedis) -> float:
    async with connect(redis.url) as broker:
        return await redis_time(broker.store.redis) - time.time()


async def test_a_step_forward_takes_nothing_from_who_runs_it(
    stepped: tuple[EmbeddedRedis, SteppedRedis], sim: str
) -> None:
    """All leases are over at once, and nobody was away."""
    redis, clock = stepped
    async with gateway(redis.url, **QUICK) as api, worker(redis.url, sim, **QUICK):
        gids = [(await api.create(asking(f"seed={n} length=200 speed=40")))["id"] for n in range(10)]
        await wait_until(partial(_all_run, api, gids))
        clock.step(20)
        assert await ahead(redis) == pytest.approx(20, abs=5)
        assert [(await api.ended(gid))["attempt"] for gid in gids] == [1] * 10


async def test_a_step_back_delays_no_takeover(stepped: tuple[EmbeddedRedis, SteppedRedis], sim: str) -> None:
    """By the leases that were given before it, the dead worker would live for an hour."""
    redis, clock = stepped
    async with gateway(redis.url, **QUICK) as api:
        async with worker(redis.url, sim, **QUICK) as doomed:
            gid = (await api.create(asking("seed=3 length=400 speed=40")))["id"]
            await wait_until(partial(_all_run, api, [gid]))
            doomed.send(signal.SIGKILL)
            clock.step(-HOUR)
        assert await ahead(redis) == pytest.approx(-HOUR, abs=5)
        async with worker(redis.url, sim, **QUICK):
            assert (await api.ended(gid))["attempt"] == 2


async def test_an_owner_keeps_its_lease_over_a_step_back(stepped: tuple[EmbeddedRedis, SteppedRedis], sim: str) -> None:
    redis, clock = stepped
    async with gateway(redis.url, **QUICK) as api, worker(redis.url, sim, **QUICK), connect(redis.url) as broker:
        gid = (await api.create(asking("seed=3 length=300 speed=40")))["id"]
        await wait_until(partial(_all_run, api, [gid]))
        clock.step(-HOUR)

        async def renewed() -> bool:
            till = int(await broker.store.redis.execute("HGET", keys.meta(gid), "le")) / 1000
            return till < await redis_time(broker.store.redis) + 10

        await wait_until(renewed)
        assert (await api.ended(gid))["attempt"] == 1


async def _all_run(api: Gateway, gids: list[str]) -> bool:
    return all([(await api.get(gid))["first_token_at"] for gid in gids])
