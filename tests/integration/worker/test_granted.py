"""Tickets that a worker pulled and did not start: it died in between, or its place has ended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix

from broker import Broker, Event, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.queue import commands
from broker.queue.commands import Pulled, UpstreamLimits
from broker.queue.quotas import TenantLimits
from broker.queue.tickets import Queue, deserialize, granted_name, serialize
from broker.settings.settings import Settings
from broker.store import keys
from tests.support import Writer, request_body, wait_until, worker
from worker.consumer import Consumer, TicketWorker
from worker.places import Places
from worker.slots import Slots

LEASE = 2.0


async def pulled_by_a_dead_worker(broker: Broker, **more: Any) -> str:
    """Create a generation and pull its ticket, as a worker does that dies before it has claimed it."""
    created = await broker.enqueue(request_body("[[sim seed=7 length=3 speed=0]]", model="sim", **more))
    pulled = await commands.pull(
        broker.queue.redis,
        1,
        lease_ms=int(LEASE * 1000),
        born="",
        tenant_running=0,
        other_tenants=b"",
        ageing_ms=60_000,
        upstreams=[UpstreamLimits("default")],
    )
    assert pulled.tickets == [granted_name(created.id, 1).encode()]
    return created.id


async def events(broker: Broker, gid: str) -> list[Event]:
    return [event async for event in broker.follow(gid)]


async def test_another_worker_starts_them(sim: str) -> None:
    async with EmbeddedRedis() as redis, connect(redis.url) as broker:
        gid = await pulled_by_a_dead_worker(broker)
        async with worker(redis.url, sim, TOKENCAST_LEASE=str(LEASE)):
            assert (await events(broker, gid))[-1].name == "completed"
        assert await broker.queue.redis.execute("ZCARD", keys.places("default")) == 0


async def test_within_a_lease_even_if_arq_had_begun_to_start_them(sim: str) -> None:
    async with EmbeddedRedis() as redis, connect(redis.url) as broker:
        gid = await pulled_by_a_dead_worker(broker)
        name = in_progress_key_prefix + granted_name(gid, 1)
        await broker.queue.redis.execute("SET", name, "1", "PX", int(LEASE * 1000))
        async with worker(redis.url, sim, TOKENCAST_LEASE=str(LEASE)):
            assert (await events(broker, gid))[-1].name == "completed"


async def test_one_whose_place_has_ended_waits_for_another(sim: str) -> None:
    """Otherwise the upstream would get more calls than its limit."""
    async with EmbeddedRedis() as redis, connect(redis.url) as broker:
        queue = broker.queue.redis
        gid = await pulled_by_a_dead_worker(broker)
        await queue.execute("DEL", keys.places("default"))
        await queue.execute("HSET", keys.PAUSED, "u:default", 1)
        async with worker(redis.url, sim, TOKENCAST_LEASE=str(LEASE)):

            async def waits_again() -> bool:
                return await broker.queue.depth() == 1

            await wait_until(waits_again)
            assert await queue.execute("EXISTS", keys.READY) == 0
            assert (await broker.store.state(gid, "default")).status == "queued"
            await queue.execute("DEL", keys.PAUSED)
            found = await events(broker, gid)
        assert [event.name for event in found][:2] == ["created", "started"]
        assert found[-1].name == "completed"


async def test_a_second_ticket_of_a_running_generation_leaves_no_place(sim: str) -> None:
    """It would use up a limit for a lease; such a ticket is one that was offered again while it was started."""
    async with EmbeddedRedis() as redis, connect(redis.url) as broker:
        queue = broker.queue.redis
        for _ in range(4):  # as many as the upstream is known to take at first
            running = await Writer(broker.store.redis, (await broker.enqueue(request_body())).id).claim()
        async with worker(redis.url, sim, TOKENCAST_LEASE="300"):
            created = await broker.enqueue(request_body("[[sim length=1]]", model="sim"))
            assert (await events(broker, created.id))[-1].name == "completed"
        assert await queue.execute("ZCARD", keys.places("default")) == 0
        assert (await broker.store.state(running.gid, "default")).status == "in_progress"


async def test_two_workers_that_start_one_ticket_call_the_upstream_once(sim: str) -> None:
    """The first one was only slow: the generation is claimed once, and its place stays."""
    async with EmbeddedRedis() as redis, connect(redis.url) as broker:
        queue = broker.queue.redis
        async with worker(redis.url, sim), worker(redis.url, sim):
            created = await broker.enqueue(request_body("[[sim length=2000 speed=200]]", model="sim"))

            async def runs() -> bool:
                return (await broker.store.state(created.id, "default")).status == "in_progress"

            await wait_until(runs)
            arguments = [created.id, "default", "default", "default", 3, 0, False]
            job = msgspec.json.encode({"t": None, "f": "generate", "k": {}, "et": 1, "a": arguments})
            await queue.execute("SET", keys.arq_job(granted_name(created.id, 1)), job, "EX", 60)
            await queue.execute("ZADD", keys.READY, 1, granted_name(created.id, 1))

            async def taken() -> bool:
                return await queue.execute("EXISTS", keys.READY) == 0

            await wait_until(taken)
            assert await commands.has_place(queue, created.id, "default")
            state = await broker.store.state(created.id, "default")
            assert (state.status, state.attempt) == ("in_progress", 1)
            await broker.cancel(created.id)


class Interrupted(Consumer):
    """Something removes a key of each ticket between its pull and its start."""

    queue: Queue
    removed: str

    async def pull(self, most: int) -> Pulled:
        pulled = await super().pull(most)
        for ticket in map(bytes.decode, pulled.tickets):
            await self.queue.redis.execute("DEL", keys.READY if self.removed == "ticket" else keys.arq_job(ticket))
        return pulled


@pytest.mark.parametrize("removed", ["ticket", "job"])
async def test_a_ticket_that_arq_skips_is_forgotten(removed: str) -> None:
    """Otherwise its name stays until the worker ends, and counts as just granted if it comes back."""
    async with EmbeddedRedis() as redis, connect(redis.url) as broker:
        await broker.enqueue(request_body(model="sim"))
        nothing, settings = cast(Any, None), Settings(OPENAI_BASE_URL="http://127.0.0.1:9/v1")  # type: ignore[call-arg]
        slots = Slots(nothing, Places(broker.queue.redis, TenantLimits(), "w1"), nothing, 4)
        appender = cast(Any, SimpleNamespace(connected=True))
        consumer = Interrupted(broker.store.redis, broker.queue, slots, appender, settings, print, print)
        consumer.queue, consumer.removed = broker.queue, removed
        connection = broker.queue.redis.client.connection_pool
        pool = ArqRedis(connection, job_serializer=serialize, job_deserializer=deserialize)
        arq = TicketWorker(consumer, pool, settings)
        await arq.pull_now()
        assert len(arq.tasks) == (removed == "job")
        await arq.wait_jobs()
        assert consumer.granted == set()
        assert await broker.queue.depth() == 0
