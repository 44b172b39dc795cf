"""The behaviour of arq, documented or not, on which the queue and the worker rely. arq 0.28 is frozen; if that changes,
these tests show the differences."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest
from arq import Retry
from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix, job_key_prefix, retry_key_prefix
from arq.jobs import Job
from arq.worker import Worker, func
from redis.exceptions import RedisError

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from broker.queue.tickets import JOB_NAME, deserialize, serialize
from broker.redis.client import open_pool
from broker.store import keys
from tests.integration.broker.queue.waiting import pull, put
from tests.support import DEADLINE, wait_until

Started = list[tuple[str, str, str]]


@pytest.fixture
async def pool(redis: EmbeddedRedis) -> AsyncGenerator[ArqRedis, None]:
    connection = open_pool(redis.url)
    await connection.execute("FLUSHALL")
    yield ArqRedis(connection.client.connection_pool, job_serializer=serialize, job_deserializer=deserialize)
    await connection.close()


def worker(
    pool: ArqRedis, job: Callable[..., Awaitable[None]], max_jobs: int = 10, kind: type[Worker] = Worker
) -> Worker:
    """A worker configured as in worker/consumer.py."""
    return kind(
        [func(job, name=JOB_NAME)],  # type: ignore[arg-type]
        queue_name=keys.READY,
        redis_pool=pool,
        handle_signals=False,
        max_jobs=max_jobs,
        job_timeout=5,
        keep_result=0,
        max_tries=1000,
        poll_delay=1,
        health_check_key=keys.WORKER_HEALTH,
        job_serializer=serialize,
        job_deserializer=deserialize,
        log_results=False,
    )


class Recorder:
    """A job that records its calls and returns when the test allows it."""

    def __init__(self, *, blocking: bool = False) -> None:
        self.started: Started = []
        self.may_return = asyncio.Event()
        if not blocking:
            self.may_return.set()

    async def job(self, ctx: dict[str, Any], gid: str, tenant: str, *_: Any) -> None:
        self.started.append((ctx["job_id"], gid, tenant))
        await self.may_return.wait()


async def grant(broker: Broker, count: int = 1, tenant: str = "t") -> list[str]:
    """Let a pull grant new tickets; return their names."""
    await put(broker.queue.redis, tenant, count)
    return [ticket.decode() for ticket in (await pull(broker.queue.redis, count)).tickets]


async def ready(broker: Broker) -> int:
    """The number of tickets in arq's queue."""
    return await broker.queue.redis.execute("ZCARD", keys.READY)


async def finished(arq_worker: Worker) -> None:
    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*arq_worker.tasks.values())


@contextlib.asynccontextmanager
async def running(arq_worker: Worker) -> AsyncGenerator[asyncio.Task[None], None]:
    task = asyncio.create_task(arq_worker.async_run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_job_written_by_pull_lua_is_a_valid_arq_job(pool: ArqRedis, broker: Broker) -> None:
    [ticket] = await grant(broker, tenant="tenant7")
    job = Job(ticket, pool, keys.READY, deserialize)
    info = await job.info()
    assert info is not None
    gid = ticket.removesuffix(".r1")
    assert (info.function, list(info.args), info.kwargs, info.job_try) == (
        JOB_NAME,
        [gid, "tenant7", "default", "default", 3, 0, True],
        {},
        None,
    )
    assert await broker.queue.redis.execute("GET", job_key_prefix + ticket)


async def test_a_finished_job_leaves_no_keys(pool: ArqRedis, broker: Broker) -> None:
    tickets = await grant(broker, 3)
    recorder = Recorder()
    arq_worker = worker(pool, recorder.job)
    async with running(arq_worker):
        await wait_until(lambda: len(recorder.started) == 3)
        await wait_until(lambda: empty(broker))
    assert sorted(recorder.started) == [(ticket, ticket[:-3], "t") for ticket in tickets]
    assert await broker.queue.redis.execute("KEYS", "arq:*") == []


async def test_after_job_end_is_called_after_the_ticket_is_removed_with_the_job_context(
    pool: ArqRedis, broker: Broker
) -> None:
    """A ticket of the same name can therefore be written in it."""
    [ticket] = await grant(broker)
    seen: list[Any] = []

    async def job(ctx: dict[str, Any], gid: str, *_: Any) -> None:
        ctx["noted"] = gid

    async def after(ctx: dict[str, Any]) -> None:
        there = await broker.queue.redis.execute("EXISTS", keys.arq_job(ticket))
        seen.append((ctx["job_id"], ctx["noted"], await ready(broker), there))

    arq_worker = worker(pool, job)
    arq_worker.after_job_end = after
    await arq_worker._poll_iteration()
    await finished(arq_worker)
    assert seen == [(ticket, ticket.removesuffix(".r1"), 0, 0)]


async def empty(broker: Broker) -> bool:
    return await ready(broker) == 0


async def test_the_mark_of_a_running_job_lives_for_in_progress_timeout_s(pool: ArqRedis, broker: Broker) -> None:
    [ticket] = await grant(broker)
    recorder = Recorder(blocking=True)
    arq_worker = worker(pool, recorder.job)
    arq_worker.in_progress_timeout_s = 60
    async with running(arq_worker):
        await wait_until(lambda: recorder.started)
        assert 30_000 < await broker.queue.redis.execute("PTTL", in_progress_key_prefix + ticket) <= 60_000
        assert await broker.queue.redis.execute("PTTL", retry_key_prefix + ticket) > 0
        assert await ready(broker) == 1  # which is why our jobs return immediately
        assert set(arq_worker.tasks) == {ticket}
        assert arq_worker.main_task is not None
        recorder.may_return.set()
        await finished(arq_worker)
    assert await broker.queue.redis.execute("EXISTS", in_progress_key_prefix + ticket) == 0


async def test_a_poll_reads_the_current_queue_read_limit(pool: ArqRedis, broker: Broker) -> None:
    await grant(broker, 10)
    recorder = Recorder(blocking=True)
    arq_worker = worker(pool, recorder.job)
    arq_worker.queue_read_limit = 4
    await arq_worker._poll_iteration()
    await wait_until(lambda: len(recorder.started) == 4)
    assert len(arq_worker.tasks) == 4
    recorder.may_return.set()
    await finished(arq_worker)
    arq_worker.queue_read_limit = 1
    await arq_worker._poll_iteration()
    await finished(arq_worker)
    assert len(recorder.started) == 5


async def test_a_poll_takes_nothing_if_allow_pick_jobs_is_false(pool: ArqRedis, broker: Broker) -> None:
    await grant(broker)
    recorder = Recorder()
    arq_worker = worker(pool, recorder.job)
    arq_worker.allow_pick_jobs = False
    await arq_worker._poll_iteration()
    assert not arq_worker.tasks
    arq_worker.allow_pick_jobs = True
    await arq_worker._poll_iteration()
    await finished(arq_worker)
    assert len(recorder.started) == 1


async def test_an_undecodable_job_id_ends_a_poll_unless_start_jobs_skips_it(pool: ArqRedis, broker: Broker) -> None:
    await broker.queue.redis.execute("ZADD", keys.READY, 0.5, b"\xff")
    await grant(broker)
    arq_worker = worker(pool, Recorder().job)
    with pytest.raises(UnicodeDecodeError):
        await arq_worker._poll_iteration()

    class Careful(Worker):
        async def start_jobs(self, job_ids: list[bytes]) -> None:
            await super().start_jobs([job_id for job_id in job_ids if job_id.isascii()])

    recorder = Recorder()
    careful = worker(pool, recorder.job, kind=Careful)
    await careful._poll_iteration()
    await finished(careful)
    assert len(recorder.started) == 1


async def test_no_more_than_max_jobs_run(pool: ArqRedis, broker: Broker) -> None:
    await grant(broker, 5)
    recorder = Recorder(blocking=True)
    arq_worker = worker(pool, recorder.job, max_jobs=2)
    await arq_worker._poll_iteration()
    await arq_worker._poll_iteration()
    await wait_until(lambda: len(recorder.started) == 2)
    assert len(arq_worker.tasks) == 2
    recorder.may_return.set()
    await finished(arq_worker)


async def test_two_workers_never_start_the_same_ticket(pool: ArqRedis, broker: Broker) -> None:
    tickets = await grant(broker, 20)
    recorder = Recorder(blocking=True)
    workers = [worker(pool, recorder.job, max_jobs=20) for _ in range(3)]
    await asyncio.gather(*(arq_worker._poll_iteration() for arq_worker in workers))
    await wait_until(lambda: len(recorder.started) == 20)
    assert sorted(ticket for ticket, _, _ in recorder.started) == sorted(tickets)
    recorder.may_return.set()
    await asyncio.gather(*map(finished, workers))


async def test_a_score_in_the_past_is_due_and_a_ticket_with_the_score_0_is_lost(pool: ArqRedis, broker: Broker) -> None:
    """arq takes the score for the time of the enqueueing, and a zero for a ticket that another worker has finished.
    Granted tickets have the score 1."""
    granted, lost = await grant(broker, 2)
    await broker.queue.redis.execute("ZADD", keys.READY, 0, lost)
    recorder = Recorder()
    arq_worker = worker(pool, recorder.job)
    await arq_worker._poll_iteration()
    await finished(arq_worker)
    assert [ticket for ticket, _, _ in recorder.started] == [granted]
    assert lost not in arq_worker.tasks


async def test_start_jobs_starts_tickets_that_no_poll_has_read(pool: ArqRedis, broker: Broker) -> None:
    """A worker passes it what it has pulled, which costs no poll."""
    tickets = await grant(broker, 3)
    recorder = Recorder()
    arq_worker = worker(pool, recorder.job)
    await arq_worker.start_jobs([ticket.encode() for ticket in tickets])
    await finished(arq_worker)
    assert sorted(ticket for ticket, _, _ in recorder.started) == sorted(tickets)
    assert await ready(broker) == 0


async def test_a_granted_ticket_of_a_dead_worker_is_started_by_another(pool: ArqRedis, broker: Broker) -> None:
    """At its next poll; within `in_progress_timeout_s`, which is a lease, if the first one had begun to start it."""
    [untouched, begun] = await grant(broker, 2)
    await broker.queue.redis.execute("SET", in_progress_key_prefix + begun, "1", "PX", 300)
    recorder = Recorder()
    arq_worker = worker(pool, recorder.job)
    await arq_worker._poll_iteration()
    await finished(arq_worker)
    assert [ticket for ticket, _, _ in recorder.started] == [untouched]

    async def started() -> bool:
        await arq_worker._poll_iteration()
        await finished(arq_worker)
        return len(recorder.started) == 2

    await wait_until(started)
    assert recorder.started[1][0] == begun


async def test_a_job_that_raises_retry_runs_again(pool: ArqRedis, broker: Broker) -> None:
    calls: list[int] = []

    async def job(ctx: dict[str, Any], *_: Any) -> None:
        calls.append(ctx["job_try"])
        if len(calls) == 1:
            raise Retry(defer=0.05)

    await grant(broker)
    arq_worker = worker(pool, job)
    await arq_worker._poll_iteration()
    await finished(arq_worker)
    assert await ready(broker) == 1

    async def again() -> bool:
        await arq_worker._poll_iteration()
        await finished(arq_worker)
        return len(calls) == 2

    await wait_until(again)
    assert calls == [1, 2]
    assert await ready(broker) == 0


async def test_a_redis_error_ends_the_loop_and_leaks_a_slot(broker: Broker, redis: EmbeddedRedis) -> None:
    """The loop is therefore restarted with a new worker."""
    async with EmbeddedRedis() as other:
        connection = open_pool(other.url)
        pool = ArqRedis(connection.client.connection_pool, job_serializer=serialize, job_deserializer=deserialize)
        arq_worker = worker(pool, Recorder().job)
        async with running(arq_worker) as task:
            await wait_until(lambda: other_queue_seen(arq_worker))
            other.kill()
            with pytest.raises((RedisError, OSError)):
                await asyncio.wait_for(task, DEADLINE)
            with pytest.raises((RedisError, OSError)):
                await arq_worker.start_jobs([b"gen_0.1"])
        assert arq_worker.job_counter == 1
        assert not arq_worker.tasks
        await connection.close()


def other_queue_seen(arq_worker: Worker) -> bool:
    return arq_worker._last_health_check > 0
