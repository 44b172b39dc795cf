"""kill -9 of the processes that deliver webhooks, between the ending and the delivery, and around each step of it.

Whatever the step: the receiver gets the webhook at least once, under one id.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator

import pytest

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.records import Delivery
from tests.faults.tripwire import When, script, tripwire
from tests.integration.broker.webhooks.scene import announced, delivering, entry_due, make_due, settings
from tests.servers.webhook_receiver import SECRET, Receiver, webhook_receiver
from tests.support import gateway, request_body, wait_until, worker

ALLOWED = {"TOKENCAST_WEBHOOK_SECRET": SECRET, "TOKENCAST_WEBHOOK_ALLOW_PRIVATE": "1"}


@pytest.fixture
async def broker(own_redis: EmbeddedRedis) -> AsyncGenerator[Broker, None]:
    async with connect(settings=settings(own_redis.url)) as connected:
        yield connected


@pytest.fixture
async def receiver() -> AsyncGenerator[Receiver, None]:
    async with webhook_receiver() as opened:
        yield opened


async def delivered(broker: Broker, gid: str) -> list[Delivery]:
    """The attempts, once another process has delivered it; the leases of those that died end at once."""
    if await entry_due(broker, gid) is not None:
        await make_due(broker, gid)
    async with delivering(broker):

        async def done() -> list[Delivery] | None:
            listed = await broker.deliveries(gid)
            return listed.data if listed.data and listed.retry_at is None else None

        return await wait_until(done)


POINTS: list[tuple[str, When, int]] = [
    ("webhook_take", "before", 1),
    ("webhook_take", "after", 1),
    ("webhook_done", "before", 2),
    ("webhook_done", "after", 1),
]


@pytest.mark.parametrize(("name", "when", "times"), POINTS)
async def test_a_delivering_process_dies(
    own_redis: EmbeddedRedis, broker: Broker, receiver: Receiver, name: str, when: When, times: int
) -> None:
    """Only if it dies after the receiver accepted, and before that is recorded, the receiver gets it twice."""
    gid = await announced(broker, receiver.url)
    async with tripwire(own_redis.url) as wire, gateway(wire.url, **ALLOWED) as dying:
        trap = wire.trap(script(name), when, lambda: dying.process.send(signal.SIGKILL))
        await dying.process.wait()
        assert trap.sprung.is_set()
    recorded = await delivered(broker, gid)
    assert recorded[-1].status == 204
    assert [request.id for request in receiver.requests] == [f"msg_{gid}_completed"] * times
    assert len({request.body for request in receiver.requests}) == 1


@pytest.mark.parametrize("when", ["before", "after"])
async def test_gateway_and_worker_die_around_the_ending(
    own_redis: EmbeddedRedis, broker: Broker, sim: str, receiver: Receiver, when: When
) -> None:
    """Ending and announcement are one: either both are there, or another worker makes both."""
    quick = {"TOKENCAST_LEASE": "2", **ALLOWED}
    async with (
        tripwire(own_redis.url) as wire,
        gateway(own_redis.url, **quick) as api,
        worker(wire.url, sim, **quick) as running,
    ):

        def kill() -> None:
            running.send(signal.SIGKILL)
            api.process.send(signal.SIGKILL)

        trap = wire.trap(script("finish"), when, kill)
        body = request_body(model="sim-fast", tokencast={"webhook": {"url": receiver.url}})
        gid = (await api.create(body))["id"]
        await api.process.wait()
        await running.wait()
        assert trap.sprung.is_set()
    if when == "before":
        async with worker(own_redis.url, sim, **quick):
            await wait_until(lambda: receiver.requests)
    await delivered(broker, gid)
    assert {request.id for request in receiver.requests} == {f"msg_{gid}_completed"}
