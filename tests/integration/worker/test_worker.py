"""The life cycle of a worker process: start, waiting, stop, death."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import httpx2
import pytest

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis, free_port
from broker.store import keys
from tests.support import Service, clean_environment, service, ticket_of, upstream_sim, wait_until, worker
from worker.simulator import text


@pytest.fixture(scope="module")
async def sim() -> AsyncGenerator[str, None]:
    async with upstream_sim() as url:
        yield url


def request_with(directive: str) -> dict[str, Any]:
    return {"model": "sim", "messages": [{"role": "user", "content": f"Go on. [[sim seed=7 {directive}]]"}]}


async def run(broker: Broker, directive: str) -> list[str]:
    created = await broker.enqueue(request_with(directive))
    return [event.name async for event in broker.follow(created.id)]


async def in_progress(broker: Broker, gid: str, attempt: int = 1) -> bool:
    """Whether the generation is running and has text."""
    generation = await broker.get(gid)
    return generation.status == "in_progress" and bool(generation.text) and generation.attempt == attempt


async def outcome(sim: str, label: str, number: int = 0) -> str | None:
    async with httpx2.AsyncClient() as client:
        found = (await client.get(sim.removesuffix("/v1") + "/sim/calls", params={"label": label})).json()
    return found[number]["outcome"]


async def check(redis_url: str) -> int:
    async with service("worker", "--check", REDIS_URL=redis_url) as process:
        return await process.wait()


async def test_a_missing_api_key_is_named(redis: EmbeddedRedis) -> None:
    async with service("worker", REDIS_URL=redis.url) as process:
        assert await process.wait() == 2
    assert process.output.count("\n") == 0
    assert process.output.startswith("tokencast worker: OPENAI_API_KEY is not set")


async def test_missing_api_keys_of_all_upstreams_are_named(redis: EmbeddedRedis) -> None:
    upstreams = [{"name": name, "base_url": "http://x", "api_key_env": f"{name}_KEY"} for name in ("A", "B")]
    async with service("worker", REDIS_URL=redis.url, TOKENCAST_UPSTREAMS=json.dumps(upstreams)) as process:
        assert await process.wait() == 2
    assert process.output.startswith("tokencast worker: A_KEY and B_KEY are not set")


async def test_an_invalid_setting_is_named(redis: EmbeddedRedis) -> None:
    async with service("worker", REDIS_URL=redis.url, TOKENCAST_SLOTS="many") as process:
        assert await process.wait() == 2
    assert process.output.startswith("tokencast worker: TOKENCAST_SLOTS: ")


async def test_check_reports_whether_a_worker_of_this_host_is_alive(
    redis: EmbeddedRedis, broker: Broker, sim: str
) -> None:
    assert await check(redis.url) == 1
    async with worker(redis.url, sim, TOKENCAST_SLOTS="7") as process:
        [worker_id] = await broker.queue.redis.execute("ZRANGE", keys.WORKERS, 0, -1)
        fields = await broker.queue.redis.execute("HGETALL", keys.worker(worker_id.decode()))
        presence = dict(zip(fields[::2], fields[1::2], strict=True))
        assert set(presence) == {
            *(b"host", b"pid", b"slots", b"running", b"version"),
            *(b"upstreams", b"started", b"draining", b"runs"),
        }
        assert presence[b"slots"] == b"7"
        assert await check(redis.url) == 0
        await broker.queue.redis.execute("HSET", keys.worker(worker_id.decode()), "host", "another")
        assert await check(redis.url) == 1
        process.send(signal.SIGTERM)
        assert await process.wait() == 0
    assert not await broker.queue.redis.execute("EXISTS", keys.worker(worker_id.decode()), keys.WORKERS)


async def test_check_fails_if_redis_is_unreachable() -> None:
    assert await check(f"redis://127.0.0.1:{free_port()}/0") == 1


async def test_a_worker_waits_for_redis_and_logs_its_url_without_the_password(sim: str) -> None:
    port = free_port()
    environment = clean_environment(
        REDIS_URL=f"redis://:s3cret@127.0.0.1:{port}/0", OPENAI_BASE_URL=sim, OPENAI_API_KEY="simulated"
    )
    process = await Service.start("worker", environment=environment)
    try:
        await process.says(rf"Redis does not answer\. Trying redis://\*\*\*@127.0.0.1:{port}/0 again")
        process.send(signal.SIGTERM)
        assert await process.wait() == 0
        assert "s3cret" not in process.output
        assert "SIMULATED" in process.output
    finally:
        await process.stop()


async def test_a_worker_starts_as_soon_as_redis_answers(sim: str) -> None:
    async with EmbeddedRedis() as redis:
        redis.kill()
        environment = clean_environment(REDIS_URL=redis.url, OPENAI_BASE_URL=sim, OPENAI_API_KEY="simulated")
        process = await Service.start("worker", environment=environment)
        try:
            await process.says("does not answer")
            await redis.restart()
            await process.says("ready")
            async with connect(redis.url) as broker:
                assert (await run(broker, "length=3 speed=0"))[-1] == "completed"
        finally:
            await process.stop()


async def test_a_stopping_worker_completes_its_generations_and_takes_no_new_ones(
    redis: EmbeddedRedis, broker: Broker, sim: str
) -> None:
    async with worker(redis.url, sim) as process:
        created = await broker.enqueue(request_with("length=40 speed=40"))
        await wait_until(lambda: in_progress(broker, created.id))
        process.send(signal.SIGTERM)
        await process.says("stopping")
        late = await broker.enqueue(request_with("length=3 speed=0"))
        assert await process.wait() == 0
    assert (await broker.get(created.id)).status == "completed"
    assert (await broker.get(late.id)).status == "queued"
    async with worker(redis.url, sim):
        assert [event.name async for event in broker.follow(late.id)][-1] == "completed"


@pytest.mark.parametrize("signals", [2, 1])
async def test_generations_running_after_the_drain_are_handed_over(
    redis: EmbeddedRedis, broker: Broker, sim: str, signals: int
) -> None:
    """At a second signal, or after TOKENCAST_WORKER_DRAIN. The next worker restarts them without using up an
    attempt."""
    label = f"handed-{signals}"
    drain = {1: "0.2", 2: "300"}[signals]
    async with worker(redis.url, sim, TOKENCAST_WORKER_DRAIN=drain) as process:
        created = await broker.enqueue(request_with(f"length=30 speed=20 label={label}"))
        await wait_until(lambda: in_progress(broker, created.id))
        process.send(signal.SIGINT)
        await process.says("stopping")
        if signals == 2:
            process.send(signal.SIGTERM)
        assert await process.wait() == 0
    assert (await broker.get(created.id)).status == "queued"
    assert await broker.queue.depth() == 1
    assert await broker.store.redis.execute("HGET", keys.meta(created.id), "x") == b"0"

    async def disconnected() -> bool:
        return await outcome(sim, label) == "disconnected"

    await wait_until(disconnected)
    async with worker(redis.url, sim):
        events = [event async for event in broker.follow(created.id)]
    reset = next(event for event in events if event.name == "reset")
    assert json.loads(reset.data) == {"attempt": 2, "reason": "worker_stopped", "upstream": "default"}
    assert (await broker.get(created.id)).text == "".join(text.pieces(7, 30))


async def test_a_stop_while_redis_is_unreachable_does_not_hang(sim: str) -> None:
    async with EmbeddedRedis() as redis, worker(redis.url, sim) as process:
        async with connect(redis.url) as broker:
            created = await broker.enqueue(request_with("length=1000 speed=100"))
            await wait_until(lambda: in_progress(broker, created.id))
        redis.kill()
        await process.says("events wait")
        process.send(signal.SIGTERM)
        await process.says("stopping")
        process.send(signal.SIGTERM)
        assert await process.wait() == 0


async def test_a_restart_of_redis_is_only_a_pause(sim: str) -> None:
    async with EmbeddedRedis(appendonly=True) as redis, worker(redis.url, sim) as process:
        async with connect(redis.url) as broker:
            created = await broker.enqueue(request_with("length=60 speed=40"))
            await wait_until(lambda: in_progress(broker, created.id))
        redis.kill()
        await process.says("events wait")
        await redis.restart()
        async with connect(redis.url) as broker:

            async def ended() -> Any:
                generation = await broker.get(created.id)
                return generation if generation.ended else None

            generation = await wait_until(ended)
            assert generation.status == "completed"
            assert generation.attempt == 1
            assert generation.text == "".join(text.pieces(7, 60))
            # The queue's loop has also restarted.
            assert (await run(broker, "length=3 speed=0"))[-1] == "completed"


async def test_the_generation_of_a_killed_worker_restarts(sim: str) -> None:
    async with (
        EmbeddedRedis() as redis,
        connect(redis.url) as broker,
        worker(redis.url, sim, TOKENCAST_LEASE="2") as other,
    ):
        other.send(signal.SIGSTOP)  # so that the other worker takes the tickets
        async with worker(redis.url, sim, TOKENCAST_LEASE="2") as process:
            created = await broker.enqueue(request_with("length=40 speed=40 label=killed"))
            await wait_until(lambda: in_progress(broker, created.id))
            other.send(signal.SIGCONT)
            process.send(signal.SIGKILL)
            events = [event async for event in broker.follow(created.id)]
        await other.says(f"{created.id}: queued again")
        reset = next(event for event in events if event.name == "reset")
        assert json.loads(reset.data) == {"attempt": 2, "reason": "worker_lost", "upstream": "default"}
        assert events[-1].name == "completed"
        assert (await broker.get(created.id)).text == "".join(text.pieces(7, 40))


async def test_a_generation_that_kills_its_workers_fails(sim: str) -> None:
    lease = {"TOKENCAST_LEASE": "0.5", "TOKENCAST_MAX_ATTEMPTS": "2"}
    async with EmbeddedRedis() as redis, connect(redis.url) as broker:
        created = await broker.enqueue(request_with("length=1000 speed=100"))
        for attempt in (1, 2):
            async with worker(redis.url, sim, **lease) as process:
                await wait_until(partial(in_progress, broker, created.id, attempt))
                process.send(signal.SIGKILL)
                await process.wait()
        async with worker(redis.url, sim, **lease):
            events = [event async for event in broker.follow(created.id)]
        assert json.loads(events[-1].data)["error"]["code"] == "attempts_exhausted"
        assert events[-1].cursor.seq == 0
        assert (await broker.get(created.id)).attempt == 2


async def test_a_paused_worker_cannot_write_after_it_resumes(sim: str) -> None:
    async with (
        EmbeddedRedis() as redis,
        connect(redis.url) as broker,
        worker(redis.url, sim, TOKENCAST_LEASE="2") as ghost,
    ):
        created = await broker.enqueue(request_with("length=200 speed=100"))
        await wait_until(lambda: in_progress(broker, created.id))
        ghost.send(signal.SIGSTOP)
        async with worker(redis.url, sim, TOKENCAST_LEASE="2") as process:
            await process.says(f"{created.id}: attempt 2")
            ghost.send(signal.SIGCONT)
            await ghost.says(f"{created.id}: ended elsewhere .FENCED.")
            events = [event async for event in broker.follow(created.id)]
        second = [event for event in events if event.cursor.attempt == events[-1].cursor.attempt]
        assert [event.cursor.seq for event in second] == list(range(len(second)))
        assert events[-1].name == "completed"
        assert (await broker.get(created.id)).text == "".join(text.pieces(7, 200))


async def test_a_lost_ticket_is_written_again(sim: str) -> None:
    async with EmbeddedRedis() as redis, connect(redis.url) as broker:
        created = await broker.enqueue(request_with("length=3 speed=0"))
        await broker.queue.withdraw(await ticket_of(broker.store.redis, created.id))
        await broker.store.redis.execute("ZADD", keys.live(created.id[14:16]), 1, created.id)  # due now
        async with worker(redis.url, sim, TOKENCAST_LEASE="0.5"):
            assert [event.name async for event in broker.follow(created.id)][-1] == "completed"


async def test_a_generation_starts_while_more_than_a_hundred_run(sim: str) -> None:
    """arq alone would never see the new ticket: its poll reads the first hundred tickets, which belong to running
    jobs."""
    async with EmbeddedRedis() as redis, connect(redis.url) as broker, worker(redis.url, sim, TOKENCAST_SLOTS="130"):
        await asyncio.gather(*(broker.enqueue(request_with("delay=600 label=many")) for _ in range(120)))

        async def all_run() -> bool:
            running, _ = await broker.store.list("default", "in_progress", 300)
            return len(running) == 120

        await wait_until(all_run)

        async def empty() -> bool:
            return await broker.queue.depth() == 0

        await wait_until(empty)
        assert not await broker.queue.redis.execute("KEYS", "arq:*")
        assert (await run(broker, "length=3 speed=0"))[-1] == "completed"
        running, _ = await broker.store.list("default", "in_progress", 300)
        await asyncio.gather(*(broker.cancel(generation.id) for generation in running))


async def test_the_bell_is_read_only_while_a_slot_is_free(redis: EmbeddedRedis, broker: Broker, sim: str) -> None:
    async with worker(redis.url, sim, TOKENCAST_SLOTS="1"):
        assert (await run(broker, "length=3 speed=0"))[-1] == "completed"

        async def bell_entries() -> int:
            return await broker.queue.redis.execute("LLEN", keys.BELL)

        async def bell_is_empty() -> bool:
            return await bell_entries() == 0  # a poll takes tickets, but no bell entries

        await wait_until(bell_is_empty)
        busy = await broker.enqueue(request_with("delay=600"))
        await wait_until(partial(has_status, broker, busy.id, "in_progress"))
        waiting = await broker.enqueue(request_with("length=3 speed=0"))
        assert await bell_entries() >= 1
        assert (await broker.get(waiting.id)).status == "queued"
        await broker.cancel(busy.id)
        assert [event.name async for event in broker.follow(waiting.id)][-1] == "completed"


async def has_status(broker: Broker, gid: str, status: str) -> bool:
    return (await broker.store.state(gid, "default")).status == status


async def test_a_worker_runs_at_most_one_generation_per_slot(sim: str) -> None:
    async with EmbeddedRedis() as redis, connect(redis.url) as broker, worker(redis.url, sim, TOKENCAST_SLOTS="3"):
        created = [await broker.enqueue(request_with("length=8 speed=40")) for _ in range(12)]
        most = 0
        completed = 0
        while completed < len(created):
            running, _ = await broker.store.list("default", "in_progress", 300)
            most = max(most, len(running))
            completed = len((await broker.store.list("default", "completed", 300))[0])
            await asyncio.sleep(0.005)
        assert most == 3
