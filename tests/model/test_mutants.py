"""Mutation tests: the schedules and the checks of single guards detect every removed guard."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from redis.exceptions import ResponseError

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.errors import GenerationGone
from broker.ids import shard_of
from broker.redis.client import Script
from broker.store import commands, keys
from broker.store.commands import CREATE, REAP, lifecycle_keys
from tests.model.machine import LogMachine
from tests.model.mutants import DIRECTED, SCHEDULED, Mutant, mutated
from tests.model.oracle import Violation
from tests.model.world import World
from tests.support import CLAIM, Writer, request_body

RELEASE, RESTORE = Script("store", "release"), Script("store", "restore")
Check = Callable[[Broker], Awaitable[None]]
EXAMPLES = 3000
"""Maximum. The mutants are found within about a hundred examples (measured with eight seeds each)."""


@pytest.mark.parametrize("world", ["valkey"], indirect=True)
@pytest.mark.parametrize("mutant", SCHEDULED, ids=[mutant.name for mutant in SCHEDULED])
def test_the_schedules_detect_a_removed_guard(world: World, mutant: Mutant) -> None:
    class Machine(LogMachine):
        pass

    Machine.world = world
    schedules = settings(
        max_examples=EXAMPLES,
        stateful_step_count=50,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with mutated(mutant), pytest.raises(Violation):
        run_state_machine_as_test(Machine, settings=schedules)


# --- single guards ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def unchecked() -> AsyncGenerator[Broker, None]:
    """On its own server, since mutants can leave keys without a lifetime."""
    async with EmbeddedRedis() as server, connect(server.url) as broker:
        yield broker


async def created(broker: Broker) -> Writer:
    return Writer(broker.store.redis, (await broker.enqueue(request_body())).id)


async def claim(writer: Writer) -> list[bytes]:
    names = [*lifecycle_keys(writer.gid), keys.epoch(shard_of(writer.gid))]
    return await writer.redis.run(CLAIM, names, [writer.gid, "other", 7, 60_000, "", 9])


async def attempt_numbers_differ_after_a_failover(broker: Broker) -> None:
    """Two workers claim the same generation, the second one after a failover that lost the first claim."""
    writer = await created(broker)
    names = [keys.meta(writer.gid), keys.log(writer.gid)]
    dumps = [await writer.redis.execute("DUMP", name) for name in names]
    await writer.claim()
    for name, dump in zip(names, dumps, strict=True):
        await writer.redis.execute("RESTORE", name, 7_200_000, dump, "REPLACE")
    assert (await claim(writer))[1].decode() != writer.attempt


async def a_running_generation_cannot_be_claimed(broker: Broker) -> None:
    writer = await (await created(broker)).claim()
    assert (await claim(writer))[0] == b"RUNNING"


async def a_claim_repeated_with_its_token_succeeds(broker: Broker) -> None:
    writer = await created(broker)
    assert await claim(writer) == await claim(writer)


async def an_ended_generation_cannot_be_claimed(broker: Broker) -> None:
    writer = await created(broker)
    await broker.cancel(writer.gid)
    assert (await claim(writer))[0] == b"CLOSED"


async def a_lost_log_is_not_recreated(broker: Broker) -> None:
    writer = await (await created(broker)).claim()
    await writer.redis.execute("DEL", keys.log(writer.gid))
    assert await writer.append("a") == b"LOST"
    assert not await writer.redis.execute("EXISTS", keys.log(writer.gid))


async def only_the_owner_hands_over(broker: Broker) -> None:
    writer = await (await created(broker)).claim()
    reply = await writer.redis.run(
        RELEASE, lifecycle_keys(writer.gid), [writer.gid, f"{writer.attempt}.another", "worker_stopped"]
    )
    assert reply[0] == b"NO"


async def a_deleted_generation_leaves_a_tombstone(broker: Broker) -> None:
    writer = await (await created(broker)).claim()
    await broker.delete(writer.gid)
    assert await writer.append("a") == b"GONE"


async def an_external_ending_has_a_new_attempt_number(broker: Broker) -> None:
    """After a rollback the owner could write an event with the same id: a follower that has it would wait endlessly."""
    writer = await (await created(broker)).claim()
    await writer.append("a")
    await broker.cancel(writer.gid)
    last = (await broker.get(writer.gid)).cursor
    assert (last.attempt > int(writer.attempt), last.seq) == (True, 0)


async def a_repeated_append_writes_only_new_events(broker: Broker) -> None:
    """The reply to an append is lost, and the append is sent again with newer events."""
    writer = await (await created(broker)).claim()
    await writer.append("a", "b")
    writer.n = 0
    await writer.append("a", "b", "c")
    log = await writer.redis.execute("XRANGE", keys.log(writer.gid), "-", "+")
    assert [entry[0].rpartition(b"-")[2] for entry in log[1:]] == [b"0", b"1", b"2", b"3"]


async def restored(broker: Broker, known_ms_ago: int) -> bytes:
    """The reply to a restore if the generation is missing from the data set from which it was claimed."""
    writer = await created(broker)
    reply = await claim(writer)
    attempt, epoch, fields = reply[1], reply[3], reply[4]
    await writer.redis.execute("DEL", keys.meta(writer.gid), keys.log(writer.gid))
    own, known_at = attempt + b".other", (int(attempt) >> 10) - known_ms_ago
    names = [*lifecycle_keys(writer.gid), *[keys.epoch(shard_of(writer.gid))] * 2]
    arguments = [writer.gid, own, attempt, epoch, "random", 60_000, known_at, "{}", "st", '{"attempt":1}', *fields]
    return (await writer.redis.run(RESTORE, names, arguments))[0]


async def a_restore_of_an_expired_generation_is_refused(broker: Broker) -> None:
    """The generation expired while its worker was paused; its tombstone may have expired too."""
    assert await restored(broker, 3_600_000) == b"GONE"


async def a_restore_of_a_recent_generation_succeeds(broker: Broker) -> None:
    """It existed a minute ago, so it did not expire: the server was rolled back."""
    assert await restored(broker, 60_000) == b"OK"


async def a_claim_beyond_the_attempt_budget_ends_the_generation(broker: Broker) -> None:
    writer = await created(broker)
    await writer.redis.execute("HSET", keys.meta(writer.gid), "x", 9)
    assert (await claim(writer))[0] == b"EXHAUSTED"
    ended = await broker.get(writer.gid)
    assert (ended.status, ended.error and ended.error["code"]) == ("failed", "attempts_exhausted")


async def reaped(writer: Writer, lease_over_ms: int, *, watched_ms: int, late_ms: int = -60_000) -> bytes:
    """The reply to a reap of a one-second lease that ended this many ms ago; negative: in the future."""
    seconds, _ = await writer.redis.execute("TIME")
    now = int(seconds) * 1000
    fields = ["le", now - lease_over_ms, "ls", 1000]
    await writer.redis.execute("HSET", keys.meta(writer.gid), *fields)
    await writer.redis.execute("ZADD", keys.live(shard_of(writer.gid)), 1, writer.gid)
    arguments = [writer.gid, 5, 9, 1000, watched_ms, now - late_ms]
    return (await writer.redis.run(REAP, lifecycle_keys(writer.gid), arguments))[0]


async def a_lease_is_reaped_only_after_a_full_observation(broker: Broker) -> None:
    """The owner could not renew the lease while the server was unreachable for both."""
    writer = await (await created(broker)).claim()
    assert await reaped(writer, 5000, watched_ms=999) == b"NO"
    assert await reaped(writer, 5000, watched_ms=1001) == b"REQUEUE"


async def a_late_reap_is_refused(broker: Broker) -> None:
    writer = await (await created(broker)).claim()
    assert await reaped(writer, 5000, watched_ms=1001, late_ms=2000) == b"LATE"


async def a_lease_prolonged_by_the_clock_is_shortened(broker: Broker) -> None:
    writer = await (await created(broker)).claim()
    assert await reaped(writer, -60_000, watched_ms=1001) == b"NO"
    seconds, _ = await writer.redis.execute("TIME")
    assert int(await writer.redis.execute("HGET", keys.meta(writer.gid), "le")) <= int(seconds) * 1000 + 2000


async def a_late_creation_is_refused(broker: Broker) -> None:
    gid = "gen_" + "0" * 10 + "10" + secrets.token_hex(11)
    names = [*lifecycle_keys(gid), *[keys.epoch("10")] * 2]
    fields = [
        gid,
        "default",
        "m",
        "{}",
        "{}",
        "fail",
        1,
        60_000,
        "",
        "",
        1,
        "random",
        "{}",
        1,
        "",
        3,
        "default",
        "",
        "",
        "",
        "",
        "",
        0,
    ]
    assert (await broker.store.redis.run(CREATE, names, fields))[0] == b"LATE"


async def an_external_ending_creates_no_log(broker: Broker) -> None:
    writer = await (await created(broker)).claim()
    await writer.redis.execute("DEL", keys.log(writer.gid))
    with suppress(GenerationGone):
        await broker.cancel(writer.gid)
    assert not await writer.redis.execute("EXISTS", keys.log(writer.gid))
    assert await writer.redis.execute("PTTL", keys.meta(writer.gid)) > 0


async def a_claim_after_the_end_of_the_waiting_is_refused(broker: Broker) -> None:
    writer = await created(broker)
    await writer.redis.execute("HSET", keys.meta(writer.gid), "qd", 1)
    assert (await claim(writer))[0] == b"LATE"


async def types_of(writer: Writer) -> list[bytes]:
    """The types of the events in the log."""
    return [fields[1] for _, fields in await writer.redis.execute("XRANGE", keys.log(writer.gid), "-", "+")]


async def an_attempt_begins_once(broker: Broker) -> None:
    writer = await (await created(broker)).claim()
    await writer.append("a")
    assert await commands.begin(writer.redis, writer.gid, writer.own, "default") == "OK"
    assert await types_of(writer) == [b"cr", b"st", b"c"]


async def only_the_owner_begins(broker: Broker) -> None:
    writer = await (await created(broker)).claim(begin=False)
    own = f"{int(writer.attempt) + 1}.another"
    assert await commands.begin(writer.redis, writer.gid, own, "default") == "FENCED"
    assert await types_of(writer) == [b"cr"]


async def nothing_is_appended_before_the_beginning(broker: Broker) -> None:
    writer = await (await created(broker)).claim(begin=False)
    writer.n = 0
    await writer.redis.execute("HSET", keys.meta(writer.gid), "n", 0)
    assert await writer.append("a") == b"LOST"
    assert await writer.finish() == b"LOST"
    assert await types_of(writer) == [b"cr"]


async def a_begun_attempt_is_not_deferred(broker: Broker) -> None:
    writer = await (await created(broker)).claim()
    assert await commands.defer(writer.redis, writer.gid, writer.own) is None


async def only_the_owner_defers(broker: Broker) -> None:
    writer = await (await created(broker)).claim(begin=False)
    assert await commands.defer(writer.redis, writer.gid, f"{writer.attempt}.another") is None


async def a_claimed_generation_does_not_expire(broker: Broker) -> None:
    writer = await (await created(broker)).claim(begin=False)
    await writer.redis.execute("HSET", keys.meta(writer.gid), "qd", 1)
    assert not await commands.expire(writer.redis, writer.gid)


async def a_generation_expires_at_its_deadline(broker: Broker) -> None:
    writer = await created(broker)
    await writer.redis.execute("HSET", keys.meta(writer.gid), "qd", 10**14)
    assert not await commands.expire(writer.redis, writer.gid)


async def a_claimed_generation_gets_no_reason_of_waiting(broker: Broker) -> None:
    writer = await (await created(broker)).claim(begin=False)
    assert not await commands.note(writer.redis, writer.gid, "tenant_limit", None, b"{}")


async def a_reason_of_waiting_is_told_once(broker: Broker) -> None:
    writer = await created(broker)
    assert await commands.note(writer.redis, writer.gid, "tenant_limit", None, b"{}")
    assert not await commands.note(writer.redis, writer.gid, "tenant_limit", None, b"{}")
    assert await types_of(writer) == [b"cr", b"w"]


CHECKS = [
    attempt_numbers_differ_after_a_failover,
    a_running_generation_cannot_be_claimed,
    a_claim_repeated_with_its_token_succeeds,
    an_ended_generation_cannot_be_claimed,
    a_lost_log_is_not_recreated,
    only_the_owner_hands_over,
    a_deleted_generation_leaves_a_tombstone,
    an_external_ending_has_a_new_attempt_number,
    a_repeated_append_writes_only_new_events,
    a_restore_of_an_expired_generation_is_refused,
    a_restore_of_a_recent_generation_succeeds,
    a_claim_beyond_the_attempt_budget_ends_the_generation,
    a_lease_is_reaped_only_after_a_full_observation,
    a_late_reap_is_refused,
    a_lease_prolonged_by_the_clock_is_shortened,
    a_late_creation_is_refused,
    an_external_ending_creates_no_log,
    a_claim_after_the_end_of_the_waiting_is_refused,
    an_attempt_begins_once,
    only_the_owner_begins,
    nothing_is_appended_before_the_beginning,
    a_begun_attempt_is_not_deferred,
    only_the_owner_defers,
    a_claimed_generation_does_not_expire,
    a_generation_expires_at_its_deadline,
    a_claimed_generation_gets_no_reason_of_waiting,
    a_reason_of_waiting_is_told_once,
]


@pytest.mark.parametrize(("mutant", "check"), list(zip(DIRECTED, CHECKS, strict=True)), ids=[m.name for m in DIRECTED])
async def test_a_guard_passes_its_check_and_its_mutant_fails(unchecked: Broker, mutant: Mutant, check: Check) -> None:
    await check(unchecked)
    with mutated(mutant), pytest.raises((AssertionError, ResponseError)):
        await check(unchecked)
