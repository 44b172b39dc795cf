"""Redis hangs, steps its clock, goes back in time; and processes start in the middle of it. What runs goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import httpx2
import pytest

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.errors import StorageUnavailable
from broker.ids import SHARDS, idempotency_shard, shard_of
from broker.redis.client import connect_redis
from broker.redis.clock import RedisClock
from broker.request import parse_request
from broker.settings.settings import SIMULATED_KEY, Settings
from broker.store import keys
from broker.store.commands import CLAIM, REAP, lifecycle_keys
from tests.faults.oracle import Said
from tests.faults.scene import Stored, ask, audience, prompt, stored
from tests.faults.subscriber import client
from tests.servers.redis_proxy import redis_proxy
from tests.support import (
    REAPER_OBSERVATION,
    Gateway,
    gateway,
    gather,
    in_background,
    request_body,
    wait_until,
    worker,
)
from worker.appender import Appender
from worker.attempt import Ending
from worker.claims import Claim, claim
from worker.generate import GenerationRunner
from worker.slots import Slots
from worker.upstream.stream import Upstreams

QUICK = {"TOKENCAST_LEASE": "1", "TOKENCAST_HEARTBEAT": "0.5"}
ONCE = Stored("completed", attempts=1, budget=0, calls=1)


@asynccontextmanager
async def dumping() -> AsyncGenerator[EmbeddedRedis, None]:
    """A server that comes back with what it had at its last SAVE."""
    async with EmbeddedRedis(appendonly=True, options={"appendonly": "no", "dbfilename": "dump.rdb"}) as redis:
        yield redis


async def save(redis: EmbeddedRedis) -> None:
    async with connect(redis.url) as broker:
        await broker.store.redis.execute("SAVE")


async def passed(seconds: float) -> None:
    end = time.monotonic() + seconds
    await wait_until(lambda: time.monotonic() > end)


# --- settings that differ ---------------------------------------------------------------------------------------------


async def test_the_smallest_number_of_attempts_counts(own_redis: EmbeddedRedis, sim: str) -> None:
    """The gateway allows three, the workers one: the worker that is to begin the second one ends it instead."""
    once = {**QUICK, "TOKENCAST_MAX_ATTEMPTS": "1"}
    async with gateway(own_redis.url, **QUICK) as api:
        async with worker(own_redis.url, sim, **once) as doomed:
            said = await ask(api, "differ", length=400, speed=20)
            await doomed.says(rf"{said.gid}: attempt 1")
            doomed.send(signal.SIGSTOP)  # else its own reaper could be the first
            await api.process.says(rf"{said.gid}: queued again")
            doomed.send(signal.SIGKILL)
        async with worker(own_redis.url, sim, **once) as process, client() as http:
            await process.says(rf"{said.gid}: failed \(attempts_exhausted\)")
            async with audience(http, lambda: api.url, said) as people:
                assert await people.ending() == "failed"
        ended = await api.get(said.gid)
        assert (ended["status"], ended["error"]["code"]) == ("failed", "attempts_exhausted")


# --- a Redis that hangs -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def hanging(redis: EmbeddedRedis) -> AsyncGenerator[None, None]:
    os.kill(redis.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(redis.pid, signal.SIGCONT)


async def commands(broker: Broker, name: str) -> int:
    """How often Redis has executed a command."""
    stats = (await broker.store.redis.execute("INFO", "commandstats")).decode()
    lines = [line for line in stats.splitlines() if line.startswith(f"cmdstat_{name}:")]
    return int(lines[0].partition("calls=")[2].partition(",")[0]) if lines else 0


async def test_concurrent_questions_for_the_time_share_one(own_redis: EmbeddedRedis) -> None:
    """Twenty that ask one after the other would wait for twenty timeouts."""
    async with (
        connect(own_redis.url) as broker,
        redis_proxy(own_redis.url) as proxy,
        connect_redis(proxy.url, socket_timeout=1.2) as redis,
    ):
        clock = RedisClock(redis)
        await redis.execute("PING")
        before = await commands(broker, "time")
        proxy.pause()
        await gather(*(clock.now() for _ in range(20)))
        proxy.resume()
        assert await commands(broker, "time") - before == 1


async def test_what_was_refused_is_not_created_when_redis_goes_on(
    own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command lay in its buffer."""
    monkeypatch.setattr("broker.store.store.IN_TIME", 0.6)
    settings = Settings(REDIS_URL=own_redis.url)  # pyright: ignore[reportCallIssue]
    async with (
        connect_redis(own_redis.url, socket_timeout=0.5) as redis,
        connect(own_redis.url) as observer,
    ):
        broker = Broker(redis, redis, settings)
        first = await broker.enqueue(request_body())
        before = await commands(observer, "evalsha")
        async with hanging(own_redis):
            with pytest.raises(StorageUnavailable):
                await broker.enqueue(request_body())
            await passed(1)

        async def executed() -> bool:
            return await commands(observer, "evalsha") > before

        await wait_until(executed)
        page, _ = await observer.store.list("default")
        assert [generation.id for generation in page] == [first.id]
        assert await broker.enqueue(request_body())


async def test_a_step_of_redis_s_clock_refuses_nobody(own_redis: EmbeddedRedis) -> None:
    """This process still goes by what Redis said before."""
    async with connect(own_redis.url) as broker:
        await broker.enqueue(request_body())
        broker.store.clock._offset -= 3600  # pyright: ignore[reportPrivateUsage]
        assert (await broker.enqueue(request_body())).status == "queued"


async def test_nothing_is_created_for_a_caller_who_has_left(own_redis: EmbeddedRedis) -> None:
    async with connect(own_redis.url) as broker:
        with pytest.raises(StorageUnavailable):
            await broker.submit(parse_request(request_body()), "default", None, _yes)
        assert (await broker.store.list("default"))[0] == []


async def _yes() -> bool:
    return True


async def test_callers_who_leave_a_hung_redis_create_nothing(own_redis: EmbeddedRedis) -> None:
    async with gateway(own_redis.url) as api, connect(own_redis.url) as broker:
        async with hanging(own_redis), httpx2.AsyncClient(base_url=api.url, timeout=1) as impatient:

            async def post() -> None:
                with suppress(httpx2.TimeoutException):
                    await impatient.post("/v1/generations", json=request_body())

            await gather(*(post() for _ in range(12)))
        await api.create()  # answered after all of them
        page, _ = await broker.store.list("default")
        assert len(page) == 1


async def test_a_process_that_starts_while_redis_hangs_takes_nothing(own_redis: EmbeddedRedis, sim: str) -> None:
    """The leases are over when it sees them first; their owners have had no chance to renew them."""
    labels = [f"hang-{n}" for n in range(5)]
    quick = {**QUICK, "TOKENCAST_LEASE": "2"}
    async with gateway(own_redis.url, **quick) as api, worker(own_redis.url, sim, **quick), client() as http:
        said = [await ask(api, label, length=150, speed=10) for label in labels]
        async with audience(http, lambda: api.url, said[0]) as people:
            await people.has_text()
            async with hanging(own_redis):
                await passed(6)  # the leases are over, and the connections given up
                second = asyncio.create_task(_second_gateway(own_redis.url, quick))
                await passed(1)
            assert await people.ending() == "completed"
            assert people.resets == 0
        for one, label in zip(said, labels, strict=True):
            assert (await api.ended(one.gid))["attempt"] == 1
            assert await stored(own_redis.url, sim, one, label) == ONCE
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)


async def test_an_attempt_claimed_anew_whose_reply_was_lost_is_run(own_redis: EmbeddedRedis, sim: str) -> None:
    """After an upstream error behind text."""
    async with gateway(own_redis.url) as api, redis_proxy(own_redis.url) as proxy, worker(proxy.url, sim) as process:
        body = prompt("again", seed=7, length=40, speed=100, more="fault=cut at=20 times=1")
        said = Said((await api.create({**body, "on_upstream_error": "restart"}))["id"], 7, 40)
        await process.says(rf"{said.gid}: attempt 1")
        proxy.lose_reply_to = CLAIM.sha.encode()
        await process.says(rf"{said.gid}: completed")
        assert proxy.lost == 1
        assert (await api.get(said.gid))["attempt"] == 2


async def _second_gateway(url: str, variables: dict[str, str]) -> None:
    async with gateway(url, **variables):
        await asyncio.Event().wait()


# --- a Redis that goes back -------------------------------------------------------------------------------------------


async def test_an_ending_outlives_an_outage_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis comes back in a state from before the ending, long after the time for which endings are kept."""
    monkeypatch.setattr("worker.ended_attempts.RETENTION", 0.5)
    async with dumping() as redis, connect(redis.url) as broker:
        settings = Settings(REDIS_URL=redis.url)  # pyright: ignore[reportCallIssue]
        appender = Appender(settings)
        async with in_background(appender.run()):
            await appender.ready()
            generation = await broker.enqueue(request_body())
            ours = await claim(broker.store.redis, generation.id, settings)
            assert isinstance(ours, Claim)
            attempt = appender.open(ours)
            attempt.push_event(b"w", b'{"reason":"rate_limited","retry_at":1}')
            await wait_until(lambda: attempt.acked == 1)
            await broker.store.redis.execute("SAVE")
            await attempt.finish(Ending(b"ok", "completed", b'{"finish_reason":"stop"}', "stop", b"{}", b"", b"[]"))
            redis.kill()
            await passed(2)
            await redis.restart()

            async def completed() -> bool:
                with suppress(StorageUnavailable):
                    return (await broker.get(generation.id)).status == "completed"
                return False

            await wait_until(completed)


def shard_mates() -> tuple[str, str]:
    """Two idempotency keys whose generations are of one shard."""
    found: dict[str, str] = {}
    for number in range(10 * len(SHARDS)):
        key = f"k{number}"
        other = found.setdefault(idempotency_shard("default", key), key)
        if other != key:
            return other, key
    raise AssertionError


async def test_a_roll_back_to_before_the_creation_is_a_pause(sim: str) -> None:
    """The shard was there before, so its data set is the same one. Its readers wait."""
    older, newer = shard_mates()
    quick = {**QUICK, "TOKENCAST_LEASE": "3"}
    async with (
        dumping() as redis,
        gateway(redis.url, **quick) as api,
        worker(redis.url, sim, **quick),
        client() as http,
    ):
        await api.ended((await ask(api, "before", length=3, **{"idempotency-key": older})).gid)
        await save(redis)
        said = await ask(api, "rolled-back", length=150, speed=30, **{"idempotency-key": newer})
        async with audience(http, lambda: api.url, said) as people:
            await people.has_text()
            redis.kill()
            await redis.restart()
            assert await people.ending() == "completed"
            assert people.resets == 0
        assert await stored(redis.url, sim, said, "rolled-back") == ONCE


async def test_what_was_deleted_stays_so_over_a_restart(sim: str) -> None:
    """Also for its worker, which hears of it only afterwards."""
    quick = {**QUICK, "TOKENCAST_LEASE": "3"}
    async with (
        EmbeddedRedis(appendonly=True) as redis,
        gateway(redis.url, **quick) as api,
        worker(redis.url, sim, **quick) as process,
    ):
        said = await ask(api, "deleted", length=400, speed=30)
        await wait_until(lambda: _has_text(api, said.gid))
        process.send(signal.SIGSTOP)
        assert (await api.http.delete(f"/v1/generations/{said.gid}")).status_code == 204
        await redis.restart()
        process.send(signal.SIGCONT)
        await process.says(rf"{said.gid}: ended elsewhere \(GONE\)")
        assert (await api.http.get(f"/v1/generations/{said.gid}")).status_code == 410


async def _has_text(api: Gateway, gid: str) -> bool:
    return bool((await api.get(gid)).get("text"))


async def test_a_gateway_that_never_saw_the_shard_knows_that_redis_lost_it(own_redis: EmbeddedRedis, sim: str) -> None:
    """A generation that is not known yet is answered as such, and one that never was is unknown."""
    quick = {**QUICK, "TOKENCAST_LEASE": "3"}
    async with (
        gateway(own_redis.url, **quick) as first,
        gateway(own_redis.url, **quick) as second,
        worker(own_redis.url, sim, **quick) as process,
    ):
        said = await ask(first, "lost", length=150, speed=30)
        await wait_until(lambda: _has_text(first, said.gid))
        process.send(signal.SIGSTOP)
        await own_redis.restart()

        async def asked() -> httpx2.Response | None:
            with suppress(httpx2.HTTPError):
                return await second.http.get(f"/v1/generations/{said.gid}")
            return None

        assert (await wait_until(asked)).status_code == 503
        stream = await second.http.get(f"/v1/generations/{said.gid}/events")
        assert (stream.status_code, stream.text.startswith("retry:")) == (200, True)
        never = "gen_" + "0" * 10 + shard_of(said.gid) + "0" * 22
        assert (await second.http.get(f"/v1/generations/{never}")).status_code == 404
        process.send(signal.SIGCONT)
        async with client() as http, audience(http, lambda: second.url, said) as people:
            assert await people.ending() == "completed"
        assert (await stored(own_redis.url, sim, said, "lost")).calls == 1


# --- a worker that loses what it runs, and gets it back ---------------------------------------------------------------


async def test_a_worker_that_runs_a_generation_twice_hands_it_over(
    own_redis: EmbeddedRedis, sim: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its appender hung until the leases were over; it took the tickets again; the older attempts end after that."""
    settings = Settings(REDIS_URL=own_redis.url, OPENAI_BASE_URL=sim, OPENAI_API_KEY=SIMULATED_KEY)  # type: ignore[call-arg]
    async with (
        redis_proxy(own_redis.url) as proxy,
        connect(own_redis.url) as broker,
        Upstreams(settings) as upstreams,
    ):
        redis = broker.store.redis
        appender = Appender(settings.model_copy(update={"redis_url": proxy.url}))
        generator = GenerationRunner(redis, appender, upstreams, settings)
        running = Slots(generator, redis, broker.queue, 10)
        async with in_background(appender.run()):
            await appender.ready()
            body = request_body("[[sim length=4000 speed=20]]", model="sim")
            gids = [(await broker.enqueue(body)).id for _ in range(3)]
            for gid in gids:
                await _begin(broker, running, gid, 1)
            proxy.pause()
            for gid in gids:
                await redis.execute("HSET", keys.meta(gid), "le", 1)
                await redis.execute("ZADD", keys.live(shard_of(gid)), 1, gid)
                await redis.run(REAP, lifecycle_keys(gid), [gid, 5, 9, *REAPER_OBSERVATION])
                await _begin(broker, running, gid, 1)  # under the same ticket, if Redis forgot the reaper's
            proxy.resume()
            await wait_until(lambda: len(running) == 3)
            await running.hand_over()
        for gid in gids:
            assert (await broker.store.state(gid, "default")).status == "queued"
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


async def _begin(broker: Broker, running: Slots, gid: str, ticket: int) -> None:
    outcome = await claim(broker.store.redis, gid, broker.settings)
    assert isinstance(outcome, Claim)
    running.start(f"{gid}.{ticket}", outcome)


# --- what has expired -------------------------------------------------------------------------------------------------


async def test_what_expired_while_nothing_ran_is_not_counted(own_redis: EmbeddedRedis) -> None:
    async with gateway(own_redis.url) as api, connect(own_redis.url) as broker:
        gid = (await api.create())["id"]
        await api.create()
        for name in (keys.meta(gid), keys.log(gid)):
            await broker.store.redis.execute("PEXPIRE", name, 1)

        async def counted() -> bool:
            return (await api.http.get("/v1/overview")).json()["generations"]["queued"] == 1

        await wait_until(counted)


async def test_a_generation_without_a_log_is_not_run(own_redis: EmbeddedRedis, sim: str) -> None:
    """It can be read no more: neither a worker nor a reaper makes it another log."""
    async with gateway(own_redis.url, **QUICK) as api, connect(own_redis.url) as broker:
        gid = (await api.create())["id"]
        await broker.store.redis.execute("DEL", keys.log(gid))
        await broker.store.redis.execute("ZADD", keys.live(shard_of(gid)), 1, gid)
        async with worker(own_redis.url, sim, **QUICK):

            async def over() -> bool:
                return await broker.store.redis.execute("HGET", keys.meta(gid), "st") == b"failed"

            await wait_until(over)
        assert (await api.http.get(f"/v1/generations/{gid}")).status_code == 410
        assert not await broker.store.redis.execute("EXISTS", keys.log(gid))
