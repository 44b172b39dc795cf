"""Redis hangs, steps its clock, or comes back in an older state, and processes start meanwhile. Running generations
continue."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial

import httpx2
import pytest

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.errors import StorageUnavailable
from broker.events import CHUNK
from broker.ids import SHARDS, idempotency_shard, shard_of
from broker.queue.quotas import TenantLimits
from broker.redis.client import connect_redis
from broker.redis.clock import RedisClock
from broker.request.body import parse_request
from broker.settings.settings import SIMULATED_KEY, Settings
from broker.store import commands, keys
from broker.store.commands import CLAIM, REAP, lifecycle_keys
from tests.faults.oracle import Said
from tests.faults.scene import QUICK, Stored, ask, audience, prompt, stored
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
from worker.hand_back import HandBack
from worker.places import Places
from worker.slots import Slots
from worker.upstream.chunks import Chunk
from worker.upstream.stream import Upstreams

ONCE = Stored("completed", attempts=1, budget=0, calls=1)


@asynccontextmanager
async def redis_with_snapshots() -> AsyncGenerator[EmbeddedRedis, None]:
    """A server that restarts with the data of its last SAVE."""
    async with EmbeddedRedis(appendonly=True, options={"appendonly": "no", "dbfilename": "dump.rdb"}) as redis:
        yield redis


async def save(redis: EmbeddedRedis) -> None:
    async with connect(redis.url) as broker:
        await broker.store.redis.execute("SAVE")


async def wait_seconds(seconds: float) -> None:
    end = time.monotonic() + seconds
    await wait_until(lambda: time.monotonic() > end)


# --- settings that differ ---------------------------------------------------------------------------------------------


async def test_the_smallest_maximum_of_attempts_applies(own_redis: EmbeddedRedis, sim: str) -> None:
    """The gateway allows three, the workers one. The worker that would begin the second attempt ends the generation
    instead."""
    once = {**QUICK, "TOKENCAST_MAX_ATTEMPTS": "1"}
    async with gateway(own_redis.url, **QUICK) as api:
        async with worker(own_redis.url, sim, **once) as doomed:
            said = await ask(api, "differ", length=400, speed=20)
            await doomed.says(rf"{said.gid}: attempt 1")
            doomed.send(signal.SIGSTOP)  # otherwise its own reaper could be the first
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
async def paused(redis: EmbeddedRedis) -> AsyncGenerator[None, None]:
    os.kill(redis.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(redis.pid, signal.SIGCONT)


async def execution_count(broker: Broker, name: str) -> int:
    """The number of times that Redis has executed a command."""
    stats = (await broker.store.redis.execute("INFO", "commandstats")).decode()
    lines = [line for line in stats.splitlines() if line.startswith(f"cmdstat_{name}:")]
    return int(lines[0].partition("calls=")[2].partition(",")[0]) if lines else 0


async def test_concurrent_reads_of_the_clock_share_one_command(own_redis: EmbeddedRedis) -> None:
    """In sequence, twenty requests would wait for twenty timeouts."""
    async with (
        connect(own_redis.url) as broker,
        redis_proxy(own_redis.url) as proxy,
        connect_redis(proxy.url, socket_timeout=1.2) as redis,
    ):
        clock = RedisClock(redis)
        await redis.execute("PING")
        before = await execution_count(broker, "time")
        proxy.pause()
        await gather(*(clock.now() for _ in range(20)))
        proxy.resume()
        assert await execution_count(broker, "time") - before == 1


async def test_a_refused_request_creates_nothing_after_redis_resumes(
    own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command was still in Redis's socket buffer."""
    monkeypatch.setattr("broker.store.store.IN_TIME", 0.6)
    settings = Settings(REDIS_URL=own_redis.url)  # pyright: ignore[reportCallIssue]
    async with (
        connect_redis(own_redis.url, socket_timeout=0.5) as redis,
        connect(own_redis.url) as observer,
    ):
        broker = Broker(redis, redis, settings)
        first = await broker.enqueue(request_body())
        before = await execution_count(observer, "evalsha")
        async with paused(own_redis):
            with pytest.raises(StorageUnavailable):
                await broker.enqueue(request_body())
            await wait_seconds(1)

        async def executed() -> bool:
            return await execution_count(observer, "evalsha") > before

        await wait_until(executed)
        page, _ = await observer.store.list("default")
        assert [generation.id for generation in page] == [first.id]
        assert await broker.enqueue(request_body())


async def test_a_step_of_the_redis_clock_refuses_no_request(own_redis: EmbeddedRedis) -> None:
    """This process still uses the time that Redis reported before."""
    async with connect(own_redis.url) as broker:
        await broker.enqueue(request_body())
        broker.store.clock._offset -= 3600  # pyright: ignore[reportPrivateUsage]
        assert (await broker.enqueue(request_body())).status == "queued"


async def test_nothing_is_created_for_a_disconnected_caller(own_redis: EmbeddedRedis) -> None:
    async with connect(own_redis.url) as broker:
        with pytest.raises(StorageUnavailable):
            await broker.submit(parse_request(request_body()), "default", None, _has_left)
        assert (await broker.store.list("default"))[0] == []


async def _has_left() -> bool:
    return True


async def test_requests_that_time_out_while_redis_hangs_create_nothing(own_redis: EmbeddedRedis) -> None:
    async with gateway(own_redis.url) as api, connect(own_redis.url) as broker:
        async with paused(own_redis), httpx2.AsyncClient(base_url=api.url, timeout=1) as impatient:

            async def post() -> None:
                with suppress(httpx2.TimeoutException):
                    await impatient.post("/v1/generations", json=request_body())

            await gather(*(post() for _ in range(12)))
        await api.create()  # processed after all of them
        page, _ = await broker.store.list("default")
        assert len(page) == 1


async def test_a_process_that_starts_while_redis_hangs_requeues_nothing(own_redis: EmbeddedRedis, sim: str) -> None:
    """The leases have expired when it sees them first; their owners had no chance to renew them."""
    labels = [f"hang-{n}" for n in range(5)]
    async with gateway(own_redis.url, **QUICK) as api, worker(own_redis.url, sim, **QUICK), client() as http:
        said = [await ask(api, label, length=150, speed=10) for label in labels]
        async with audience(http, lambda: api.url, said[0]) as people:
            await people.has_text()
            async with paused(own_redis):
                await wait_seconds(6)  # the leases have expired, and the connections have been closed
                second = asyncio.create_task(_second_gateway(own_redis.url, QUICK))
                await wait_seconds(1)
            assert await people.ending() == "completed"
            assert people.resets == 0
        for one, label in zip(said, labels, strict=True):
            assert (await api.ended(one.gid))["attempt"] == 1
            assert await stored(own_redis.url, sim, one, label) == ONCE
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)


async def test_an_attempt_runs_although_the_reply_to_its_claim_was_lost(own_redis: EmbeddedRedis, sim: str) -> None:
    """A second attempt, after an upstream error that followed some text."""
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


# --- a Redis that comes back in an older state -----------------------------------------------------------------------


async def test_an_ending_survives_an_outage_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis comes back in a state from before the ending, long after the retention time of endings."""
    monkeypatch.setattr("worker.ended_attempts.RETENTION", 0.5)
    async with redis_with_snapshots() as redis, connect(redis.url) as broker:
        settings = Settings(REDIS_URL=redis.url)  # pyright: ignore[reportCallIssue]
        appender = Appender(settings)
        async with in_background(appender.run()):
            await appender.ready()
            generation = await broker.enqueue(request_body())
            ours = await claim(broker.store.redis, generation.id, settings, "default")
            assert isinstance(ours, Claim)
            attempt = appender.open(ours)
            assert await commands.begin(broker.store.redis, ours.gid, ours.own, ours.upstream) == "OK"
            attempt.begun = True
            attempt.push([Chunk(CHUNK, b'{"choices":[{"index":0,"delta":{"content":"a"}}]}', 1, (), None)])
            await wait_until(lambda: attempt.acked == 1)
            await broker.store.redis.execute("SAVE")
            await attempt.finish(Ending(b"ok", "completed", b'{"finish_reason":"stop"}', "stop", b"{}", b"", b"[]"))
            redis.kill()
            await wait_seconds(2)
            await redis.restart()

            async def completed() -> bool:
                with suppress(StorageUnavailable):
                    return (await broker.get(generation.id)).status == "completed"
                return False

            await wait_until(completed)


def shard_mates() -> tuple[str, str]:
    """Two idempotency keys whose generations belong to the same shard."""
    found: dict[str, str] = {}
    for number in range(10 * len(SHARDS)):
        key = f"k{number}"
        other = found.setdefault(idempotency_shard("default", key), key)
        if other != key:
            return other, key
    raise AssertionError


async def test_a_rollback_to_before_the_creation_is_only_a_pause(sim: str) -> None:
    """The shard existed before, so its epoch is the same. The subscribers wait."""
    older, newer = shard_mates()
    quick = {**QUICK, "TOKENCAST_LEASE": "3"}
    async with (
        redis_with_snapshots() as redis,
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


async def test_a_deleted_generation_stays_deleted_after_a_restart(sim: str) -> None:
    """The worker, which learns of it only afterwards, does not put the generation back."""
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


async def test_a_gateway_detects_data_loss_in_a_shard_that_it_never_used(own_redis: EmbeddedRedis, sim: str) -> None:
    """A generation that is not known yet gets 503; one that never existed gets 404."""
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

        async def response_of_second() -> httpx2.Response | None:
            with suppress(httpx2.HTTPError):
                return await second.http.get(f"/v1/generations/{said.gid}")
            return None

        assert (await wait_until(response_of_second)).status_code == 503
        stream = await second.http.get(f"/v1/generations/{said.gid}/events")
        assert (stream.status_code, stream.text.startswith("retry:")) == (200, True)
        never = "gen_" + "0" * 10 + shard_of(said.gid) + "0" * 22
        assert (await second.http.get(f"/v1/generations/{never}")).status_code == 404
        process.send(signal.SIGCONT)
        async with client() as http, audience(http, lambda: second.url, said) as people:
            assert await people.ending() == "completed"
        assert (await stored(own_redis.url, sim, said, "lost")).calls == 1


# --- a worker that loses its generations and gets them back -----------------------------------------------------------


async def test_a_worker_with_two_attempts_of_a_generation_hands_it_over(
    own_redis: EmbeddedRedis, sim: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its appender was blocked until the leases had expired. It claimed the generations again, and the older attempts
    end after that."""
    settings = Settings(REDIS_URL=own_redis.url, OPENAI_BASE_URL=sim, OPENAI_API_KEY=SIMULATED_KEY)  # type: ignore[call-arg]
    async with (
        redis_proxy(own_redis.url) as proxy,
        connect(own_redis.url) as broker,
        Upstreams(settings) as upstreams,
    ):
        redis = broker.store.redis
        appender = Appender(settings.model_copy(update={"redis_url": proxy.url}))
        places = Places(broker.queue.redis, TenantLimits.of(settings), "worker")
        hand_back = HandBack(redis, broker.queue, places)
        generator = GenerationRunner(redis, appender, upstreams, places, hand_back, settings)
        running = Slots(generator, places, hand_back, 10)
        async with in_background(appender.run()):
            await appender.ready()
            body = request_body("[[sim length=4000 speed=20]]", model="sim")
            gids = [(await broker.enqueue(body)).id for _ in range(3)]
            for gid in gids:
                await _begin(broker, running, gid, 1)
            for gid in gids:
                await wait_until(partial(_is_running, broker, gid))
            proxy.pause()
            for gid in gids:
                await redis.execute("HSET", keys.meta(gid), "le", 1)
                await redis.execute("ZADD", keys.live(shard_of(gid)), 1, gid)
                await redis.run(REAP, lifecycle_keys(gid), [gid, 5, 9, *REAPER_OBSERVATION])
                await _begin(broker, running, gid, 1)  # with the same ticket, if Redis lost the reaper's
            proxy.resume()
            await wait_until(lambda: len(running) == 3)
            await running.hand_over()
        for gid in gids:
            assert (await broker.store.state(gid, "default")).status == "queued"
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


async def _begin(broker: Broker, running: Slots, gid: str, ticket: int) -> None:
    running.places.add(gid, "default", "default", 0)
    outcome = await claim(broker.store.redis, gid, broker.settings, "default")
    assert isinstance(outcome, Claim)
    running.start(f"{gid}.{ticket}", outcome)


async def _is_running(broker: Broker, gid: str) -> bool:
    return (await broker.store.state(gid, "default")).status == "in_progress"


# --- expired generations ----------------------------------------------------------------------------------------------


async def test_generations_that_expired_while_no_process_ran_are_not_counted(own_redis: EmbeddedRedis) -> None:
    async with gateway(own_redis.url) as api, connect(own_redis.url) as broker:
        gid = (await api.create())["id"]
        await api.create()
        for name in (keys.meta(gid), keys.log(gid)):
            await broker.store.redis.execute("PEXPIRE", name, 1)

        async def counted() -> bool:
            return (await api.http.get("/v1/overview")).json()["generations"]["queued"] == 1

        await wait_until(counted)


async def test_a_generation_without_a_log_is_not_run(own_redis: EmbeddedRedis, sim: str) -> None:
    """It can no longer be read, so neither a worker nor a reaper creates another log for it."""
    async with gateway(own_redis.url, **QUICK) as api, connect(own_redis.url) as broker:
        gid = (await api.create())["id"]
        await broker.store.redis.execute("DEL", keys.log(gid))
        await broker.store.redis.execute("ZADD", keys.live(shard_of(gid)), 1, gid)
        async with worker(own_redis.url, sim, **QUICK):

            async def has_failed() -> bool:
                return await broker.store.redis.execute("HGET", keys.meta(gid), "st") == b"failed"

            await wait_until(has_failed)
        assert (await api.http.get(f"/v1/generations/{gid}")).status_code == 410
        assert not await broker.store.redis.execute("EXISTS", keys.log(gid))
