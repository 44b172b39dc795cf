"""Faults in the queue, between a generation's creation and its start."""

from __future__ import annotations

import pickle
from collections.abc import AsyncGenerator
from functools import partial

import msgspec
import pytest

from broker import Broker, connect
from broker.broker import OPEN_TENANT
from broker.dev.embedded_redis import EmbeddedRedis
from broker.ids import created_ms
from broker.queue.commands import OFFER, Ticket, offer_arguments
from broker.queue.tickets import JOB_NAME, granted_name
from broker.request.body import parse_request
from broker.store import keys
from tests.faults.oracle import Said
from tests.faults.scene import QUICK, Stored, ask, audience, is_overdue, prompt, queue_is_empty, stored
from tests.faults.subscriber import client
from tests.faults.tripwire import command, tripwire
from tests.support import Gateway, Service, clients_by_last_command, gateway, gather, upstream_calls, wait_until, worker

ONCE = Stored("completed", attempts=1, budget=0, calls=1)


@pytest.fixture(scope="module")
async def api(redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    async with gateway(redis.url, **QUICK) as started:
        yield started


@pytest.fixture(scope="module")
async def one_slot(redis: EmbeddedRedis, sim: str, api: Gateway) -> AsyncGenerator[Service, None]:
    """A worker that takes one ticket at a time: a ticket that stays at the head of the queue blocks all others."""
    async with worker(redis.url, sim, **QUICK, TOKENCAST_SLOTS="1") as started:
        yield started


async def created(broker: Broker, label: str) -> Said:
    """Create a generation without a ticket."""
    request = parse_request(prompt(label, seed=7, length=20, speed=200))
    return Said((await broker.store.create(request, OPEN_TENANT, None)).id, 7, 20)


async def completes(api: Gateway, said: Said) -> None:
    async with client() as http, audience(http, lambda: api.url, said) as people:
        assert await people.ending() == "completed"


def job(*arguments: object, function: str = JOB_NAME) -> bytes:
    """The payload of a granted ticket, as pull.lua writes it."""
    return msgspec.json.encode({"t": None, "f": function, "a": arguments, "k": {}, "et": 1})


NOWHERE = "gen_" + "0" * 10 + "10" + "0" * 22
GRANTED = ("t", "default", "default", 3, 10)  # tenant, upstream, lane, priority, tokens
BAD_TICKETS: dict[str, tuple[bytes, bytes | None]] = {
    "not JSON": (b"bad.1", b"\xff{"),
    "JSON of another shape": (b"bad.2", b"[1, 2]"),
    "a pickle": (b"bad.3", pickle.dumps({"t": None, "f": JOB_NAME, "a": ("x", *GRANTED), "k": {}, "et": 1})),
    "no payload": (b"bad.4", None),
    "an unknown function": (b"bad.5", job(NOWHERE, *GRANTED, function="generate_v9")),
    "too few arguments": (b"bad.6", job(NOWHERE)),
    "arguments of other types": (b"bad.7", job(17, None, 1, 2, "x", [])),
    "an invalid id": (b"bad.8", job("gen_none", *GRANTED)),
    "a generation that never existed": (b"bad.9", job(NOWHERE, *GRANTED)),
    "a name without a number": (b"bad", job(NOWHERE, *GRANTED)),
    "a name that is not text": (b"bad.\xff\xfe", None),
}


@pytest.mark.parametrize(("ticket", "payload"), BAD_TICKETS.values(), ids=BAD_TICKETS.keys())
async def test_a_bad_ticket_does_not_stop_a_worker(
    redis: EmbeddedRedis, api: Gateway, one_slot: Service, ticket: bytes, payload: bytes | None
) -> None:
    """It is the first of the granted ones. The next generation still runs, and nothing of the bad ticket is left."""
    async with connect(redis.url) as broker:
        execute = broker.queue.redis.execute
        if payload is not None:
            await execute("SET", b"arq:job:" + ticket, payload, "PX", 60_000)
        await execute("ZADD", keys.READY, 0.5, ticket)
        await execute("EXPIRE", keys.READY, 60)
    await completes(api, await ask(api, "after-a-bad-ticket", length=5))
    await queue_is_empty(redis.url)
    assert one_slot.process.returncode is None


async def test_a_generation_whose_ticket_is_of_another_version_is_offered_again(
    redis: EmbeddedRedis, sim: str, api: Gateway, one_slot: Service
) -> None:
    """A worker that does not know the ticket's function discards it; the generation still runs."""
    async with connect(redis.url) as broker:
        said = await created(broker, "other-version")
        execute = broker.queue.redis.execute
        payload = job(said.gid, OPEN_TENANT, *GRANTED[1:], function="generate_v9")
        await execute("SET", keys.arq_job(granted_name(said.gid, 1)), payload, "PX", 60_000)
        await execute("ZADD", keys.READY, 1, granted_name(said.gid, 1))
        await queue_is_empty(redis.url)
        assert (await broker.store.state(said.gid, OPEN_TENANT)).status == "queued"
    await is_overdue(redis.url, said.gid)
    await completes(api, said)
    assert await stored(redis.url, sim, said, "other-version") == ONCE


async def test_a_ticket_is_found_without_the_bell(
    redis: EmbeddedRedis, sim: str, api: Gateway, one_slot: Service
) -> None:
    """The regular poll finds it; nothing else would look for it."""
    async with connect(redis.url) as broker:
        said = await created(broker, "no-bell")
        ticket = Ticket(said.gid, OPEN_TENANT, 1, "default", 3, 10, created_ms(said.gid))
        unheard = (
            f"local function offer()\n{OFFER.source}\nend local n = offer() redis.call('DEL', '{keys.BELL}') return n"
        )
        assert await broker.queue.redis.execute("EVAL", unheard, 0, *offer_arguments(ticket)) == 1
    await completes(api, said)
    assert await stored(redis.url, sim, said, "no-bell") == ONCE


async def test_an_interrupted_poll_costs_no_slot(own_redis: EmbeddedRedis, sim: str) -> None:
    """arq counts the slot before it marks the ticket, and does not return it. The bell's poll runs in a loop of its
    own."""
    async with (
        tripwire(own_redis.url) as wire,
        gateway(own_redis.url, **QUICK) as api,
        connect(own_redis.url) as broker,
        worker(wire.url, sim, **QUICK, TOKENCAST_SLOTS="1"),
    ):
        for number in range(2):
            await wait_until(lambda: clients_by_last_command(broker.queue.redis, "blpop"))
            broken = wire.trap(command(b"WATCH"), "before")
            await completes(api, await ask(api, f"broken-poll-{number}", length=5))
            assert broken.sprung.is_set()


async def test_two_hundred_silent_generations_do_not_delay_a_new_one(own_redis: EmbeddedRedis, sim: str) -> None:
    async with (
        gateway(own_redis.url) as api,
        worker(own_redis.url, sim, TOKENCAST_SLOTS="101"),
        worker(own_redis.url, sim, TOKENCAST_SLOTS="101"),
        connect(own_redis.url) as broker,
    ):
        mute = prompt("silent", seed=1, length=1, speed=1, more="fault=silent")
        silent = await gather(*(broker.enqueue(mute) for _ in range(200)))
        await wait_until(partial(all_called, sim, "silent", 200))

        async def no_ticket_is_left() -> bool:
            return await broker.queue.depth() == 0

        await wait_until(no_ticket_is_left)
        await completes(api, await ask(api, "the-201st", length=5))
        for one in silent:  # one after the other: concurrent calls could wait too long for a connection
            await broker.cancel(one.id)


async def all_called(upstream: str, label: str, count: int) -> bool:
    return len(await upstream_calls(upstream, label)) == count


async def test_a_refused_generation_does_not_hold_back_others(own_redis: EmbeddedRedis, sim: str) -> None:
    """The upstream refuses one request always, without a Retry-After: a rate limit of one model, for example."""
    async with gateway(own_redis.url) as api, worker(own_redis.url, sim):
        refused = await ask(api, "refused-always", more="fault=429")
        await wait_until(partial(is_called, sim, "refused-always"))
        for number in range(3):
            await completes(api, await ask(api, f"next-to-a-refused-{number}", length=5))
        assert (await api.get(refused.gid))["status"] == "queued"
        await api.http.post(f"/v1/generations/{refused.gid}/cancel")


async def test_long_streams_below_any_limit_do_not_delay_a_new_one(own_redis: EmbeddedRedis, sim: str) -> None:
    """They start one after the other, so that none of them ever waits; the upstream has refused nothing."""
    async with gateway(own_redis.url) as api, worker(own_redis.url, sim):
        streams: list[Said] = []
        for number in range(8):
            streams.append(await ask(api, f"long-{number}", length=3, more="fault=stall at=3"))
            await wait_until(partial(has_begun, api, streams[-1]))
        await completes(api, await ask(api, "next-to-long-streams", length=5))
        for stream in streams:
            await api.http.post(f"/v1/generations/{stream.gid}/cancel")


async def is_called(upstream: str, label: str) -> bool:
    return bool(await upstream_calls(upstream, label))


async def has_begun(api: Gateway, said: Said) -> bool:
    return (await api.get(said.gid))["status"] == "in_progress"
