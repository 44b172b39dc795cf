"""Every key has a lifetime in every state of a generation, and none exceeds the lifetime documented in
store/keys.py."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from broker import Broker, connect
from broker.auth.key_uses import KeyUses
from broker.dev.embedded_redis import EmbeddedRedis
from broker.errors import GenerationGone
from broker.ids import idempotency_shard, new_id, shard_of
from broker.queue import commands as queue_commands
from broker.queue.commands import Done, Place, Pulled, Ticket, UpstreamLimits
from broker.queue.quotas import TenantLimits
from broker.queue.reaper import log
from broker.queue.refill import Refill
from broker.queue.tickets import Queue, granted_name
from broker.redis.client import Redis
from broker.settings.settings import Settings
from broker.store import commands, keys
from broker.store.commands import KEEP_CHOICES, REAP, RESTORE, TOUCH, lifecycle_keys, restore_command
from broker.store.preflight import Preflight, mark_embedded
from broker.store.storage_share import Stored
from broker.store.store import new_epoch
from broker.webhooks.outbox import Attempt
from tests.support import (
    REAPER_OBSERVATION,
    Writer,
    clients_by_last_command,
    gateway,
    request_body,
    ticket_of,
    wait_until,
    worker,
)
from worker.claims import Claim, claim

RETENTION = 600
HOUR, DAY = 3600, 86400
DIGEST = "[0-9a-f]{16}"
SAMPLES: dict[str, tuple[Any, str]] = {
    "gid": ("gen_0123456789" + "10" + "s" * 22, "gen_.{34}"),
    "shard": ("10", ".."),
    "tenant": ("sampletenant", "(default|limited|[*])"),
    "minute": (77777777, "[0-9]+"),
    "status": ("samplestatus", "[a-z_]+"),
    "key": ("samplekey", "[0-9a-f]{64}"),
    "process": ("sampleprocess", "[0-9a-f]+"),
    "connection": (7777, "[0-9]+"),
    "ticket": ("sampleticket", r"gen_.{34}\.r?[0-9]+"),
    "worker_id": ("sampleworker", ".+"),
    "host": ("samplehost", "[0-9a-f]{16}"),
    "model": ("samplemodel", DIGEST),
    "code": ("samplecode", DIGEST),
    "name": ("samplename", DIGEST),
    "value": ("samplevalue", DIGEST),
    "level": ("samplelevel", "default:[1-5]"),
    "priority": (7, "[1-5]"),
    "resource": ("sampleresource", "(default|other)"),
}
"""A value for each parameter of a key function, and the pattern of real values."""
OF_0_1_0 = {"OLD_QUEUE", "old_parked"}
"""Keys that only processes of that version write."""
ARQ_KEYS = re.compile("arq:(in-progress|retry):gen_.*")


class Kind:
    """One function or constant of broker/store/keys.py, and the maximum lifetime of its keys in seconds."""

    def __init__(self, name: str, patterns: list[str], doc: str) -> None:
        self.name = name
        self.patterns = [re.compile(pattern) for pattern in patterns]
        _type, _contents, lifetime, _writers = " ".join(doc.split("\n\n")[0].split()).split(" · ")
        self.most = _seconds(lifetime)

    def matches(self, key: str) -> bool:
        return any(pattern.fullmatch(key) for pattern in self.patterns)


def _seconds(lifetime: str) -> int:
    """`7 d`, `60 s`, `expires + 1 h (…)`, `retention, 7 d at least`."""
    if lifetime == "stays":
        return sys.maxsize
    units = {"s": 1, "h": HOUR, "d": DAY}
    amounts = [int(n) * units[unit] for n, unit in re.findall(r"(\d+) ([shd])\b", lifetime)]
    if lifetime.startswith("expires"):
        return 7 * DAY + sum(amounts)
    return max([*amounts, RETENTION if "retention" in lifetime else 0])


def kinds() -> Iterator[Kind]:
    for name, value in vars(keys).items():
        if inspect.isfunction(value) and value.__module__ == keys.__name__ and not name.startswith("_"):
            yield Kind(name, list(_patterns(value)), value.__doc__ or "")
    for assigned, docstring in itertools.pairwise(TREE):
        if isinstance(assigned, ast.Assign) and isinstance(assigned.value, ast.Constant):
            assert isinstance(docstring, ast.Expr)
            assert isinstance(docstring.value, ast.Constant)
            yield Kind(ast.unparse(assigned.targets[0]), [re.escape(assigned.value.value)], docstring.value.value)


TREE = ast.parse(Path(inspect.getfile(keys)).read_text("utf-8")).body


def _patterns(builder: Any) -> Iterator[str]:
    """Patterns of the keys of a function: with all parameters, and with some optional ones omitted. Not without all of
    them: that is a prefix."""
    parameters = list(inspect.signature(builder).parameters.values())
    optional = sum(parameter.default is not parameter.empty for parameter in parameters)
    for left_out in range(max(optional, 1)):
        names = [parameter.name for parameter in parameters[: len(parameters) - left_out]]
        pattern = re.escape(builder(*(SAMPLES[name][0] for name in names)))
        if "key" in names:
            pattern = re.sub("[0-9a-f]{64}", lambda _: SAMPLES["key"][1], pattern)
        if any(SAMPLES[name][1] == DIGEST for name in names):
            pattern = re.sub(f"(?<=:){DIGEST}", lambda _: DIGEST, pattern)
        pattern = re.sub(r"(\\\{10\\\}|:10$)", lambda found: found[0].replace("10", ".."), pattern)
        for name in names:
            value, form = SAMPLES[name]
            pattern = pattern.replace(re.escape(str(value)), form) if name != "shard" else pattern
        yield pattern


class KeyLifetimes:
    """The keys that existed after each step, and their longest remaining lifetime."""

    def __init__(self, broker: Broker) -> None:
        self._redis = broker.store.redis
        self.longest: dict[str, float] = {}

    async def after(self, step: str, work: Awaitable[Any]) -> Any:
        result = await work
        await self.look(step)
        return result

    async def look(self, step: str) -> None:
        names = await self._redis.execute("KEYS", "*")
        lifetimes = await self._redis.pipeline([("PTTL", name) for name in names])
        for name, ms in zip(names, lifetimes, strict=True):
            lasting = name.decode() == keys.PAUSED  # an operator's decision
            assert ms != -1 or lasting, f"{step} has written {name.decode()} without a lifetime"
            self.longest[name.decode()] = max(ms / 1000, self.longest.get(name.decode(), 0))


@pytest.fixture
async def broker(engine: str) -> AsyncGenerator[Broker, None]:
    async with EmbeddedRedis(binary=engine) as redis:
        settings = Settings(REDIS_URL=redis.url, retention=RETENTION)  # pyright: ignore[reportCallIssue]
        async with connect(settings=settings) as connected:
            yield connected


async def test_every_key_has_its_documented_lifetime(broker: Broker, sim: str) -> None:
    """After each script, each transition and all other writes of workers and gateways. The test writes every kind of
    key of this version, and none that is not defined in broker/store/keys.py."""
    seen = KeyLifetimes(broker)
    await _lifecycle(broker, seen)
    await _losses(broker, seen)
    await _webhooks(broker, seen)
    await _limits(broker, seen)
    await _processes(broker, seen, sim)
    broker.history.samples = True
    await broker.enqueue(request_body())
    await seen.after("history", broker.history.flush())
    uses = KeyUses(broker.queue.redis)
    uses.note("0" * 64)
    await seen.after("key uses", uses.write())
    await seen.after("mark_embedded", mark_embedded(broker.queue.redis))
    watch = Preflight(broker.store.redis, broker.queue.redis, broker.settings, log)
    await seen.after("preflight", watch.wait_until_accepted())
    every = list(kinds())
    assert {kind.name for kind in every if not any(map(kind.matches, seen.longest))} == OF_0_1_0
    for name, seconds in seen.longest.items():
        of = [kind for kind in every if kind.matches(name)]
        assert of or ARQ_KEYS.fullmatch(name), f"{name} is not defined in broker/store/keys.py"
        for kind in of:
            assert seconds <= kind.most + 1, f"{name} has a lifetime of {seconds} s, {kind.name} allows {kind.most}"


async def _lifecycle(broker: Broker, seen: KeyLifetimes) -> None:
    redis, after = broker.store.redis, seen.after
    writer = await after("create.lua", claimable(broker, idempotency_key="k"))
    await after("claim.lua", writer.claim())
    await after("append.lua", writer.append("a "))
    await after("append.lua, waiting", writer.append_raw(b'{"reason":"x","retry_at":1}', kind="w"))
    touched = [keys.meta(writer.gid), keys.log(writer.gid), keys.live(shard_of(writer.gid))]
    await redis.execute("HSET", keys.meta(writer.gid), "le", 1)
    await after("touch.lua", redis.run(TOUCH, touched, [writer.gid, writer.own, 60_000, 1]))
    await after("move.lua", commands.move(redis, writer.gid, writer.own, "other"))
    await after("finish.lua", writer.finish())
    failed = await (await claimable(broker)).claim()
    await after("finish.lua, failed", failed.finish("failed", b'{"error":{"code":"x"}}'))
    for forget in (broker.cancel, broker.delete):
        queued, running, ended = [await claimable(broker) for _ in range(3)]
        await (await running.claim()).append("a ")
        await (await ended.claim()).finish()
        for what, each in (("queued", queued), ("running", running), ("ended", ended)):
            await after(f"{forget.__name__}.lua, {what}", forget(each.gid))
    released = await (await claimable(broker)).claim()
    await after("release.lua", commands.release(redis, released.gid, released.own, "worker_stopped"))
    deferred = await (await claimable(broker)).claim(begin=False)
    waits = {"reason": "upstream_busy", "retry_at_ms": 1, "data": b"{}", "error": b"{}", "failed": True}
    assert await after("defer.lua", commands.defer(redis, deferred.gid, deferred.own, **waits)) == 2
    assert await after("note.lua", commands.note(redis, deferred.gid, "tenant_limit", None, b"{}"))
    await redis.execute("HSET", keys.meta(deferred.gid), "qd", 1)
    assert await after("expire.lua", commands.expire(redis, deferred.gid))
    for budget, step in ((9, "reap.lua, again"), (1, "reap.lua, exhausted")):
        lost = await (await claimable(broker)).claim()
        await redis.execute("HSET", keys.meta(lost.gid), "le", 1)
        await redis.execute("ZADD", keys.live(shard_of(lost.gid)), 1, lost.gid)
        await after(step, redis.run(REAP, lifecycle_keys(lost.gid), [lost.gid, 5, budget, *REAPER_OBSERVATION]))
    left = await claimable(broker)
    await redis.execute("ZADD", keys.live(shard_of(left.gid)), 1, left.gid)
    await after("reap.lua, queued", redis.run(REAP, lifecycle_keys(left.gid), [left.gid, 5, 9, *REAPER_OBSERVATION]))
    await after("the list", broker.store.list("default"))


async def _webhooks(broker: Broker, seen: KeyLifetimes) -> None:
    """The announcement of an ending, and each step of its delivery."""
    writer, after = await claimable(broker), seen.after
    webhook = '{"url":"https://hooks.example.com/","events":["completed"]}'
    await broker.store.redis.execute("HSET", keys.meta(writer.gid), "wh", webhook)
    await (await writer.claim()).append("a ")
    await after("finish.lua, with a webhook", writer.finish())
    [host] = await broker.outbox.due_hosts(broker.outbox.groups[0])
    [entry] = await after("webhook_take.lua", broker.outbox.take(host, 1, None))
    attempt = Attempt(time.time(), 0.1, 500, "refused")
    await after("webhook_done.lua", broker.outbox.record(entry, attempt, 3600.0, 60.0))
    assert await after("webhook_redeliver.lua", broker.outbox.redeliver(writer.gid, 1))
    await after("webhook_take.lua, by hand", broker.outbox.take(host, 1, 60.0))


async def _limits(broker: Broker, seen: KeyLifetimes) -> None:
    """The keys of the queue's Redis, with a tenant that has limits."""
    queue, after = Queue(broker.queue.redis, TenantLimits(running=1, queued=9, per_minute=9)), seen.after
    redis, stored = queue.redis, Stored(100, int(time.time() * 1000))
    await redis.execute("DEL", keys.waiting("default:3", "default"), keys.turns("default:3"), keys.DEPTH)
    gids = [new_id(n, "limited") for n in range(3)]
    first, second, third = [Ticket(gid, "limited", 1, "default", 3, 0, n) for n, gid in enumerate(gids)]
    for gid in gids:
        counted = await after("quota_admit.lua", queue.quotas.admit("limited", gid, stored, 10_000))
    await after("offer.lua", queue.offer(first))
    await after("offer.lua, again", queue.offer(second))
    later = third._replace(not_before_ms=4_102_444_800_000)
    await after("offer.lua, scheduled", queue.offer(later))
    pulled = await after("pull.lua, one of two", _pull(redis))
    assert len(pulled.tickets) == 1
    await after("arq's start", redis.execute("PSETEX", keys.arq_starting(granted_name(first.gid, 1)), 15_000, "1"))
    await after("begun.lua", queue_commands.begun(redis, first.gid, "default"))
    await redis.execute("DEL", keys.places("default"), keys.running("limited"), keys.accepted("default"))
    await after("hold.lua", queue_commands.hold(redis, [Place(first.gid, "default", "limited", True)], **LEASE))
    other = [UpstreamLimits("other", 100, 1000, 1_000_000)]
    for names in ((other, "default"), ([UpstreamLimits("default")], "other")):
        await after("take.lua", queue_commands.take(redis, first.gid, names[1], names[0], tokens=1, **LEASE))
    for outcome in ("fail", "denied", "busy", "ok"):
        await after(f"done.lua, {outcome}", _done(redis, first.gid, outcome))
    await redis.execute("DEL", keys.upstream("default"))
    assert (await after("pull.lua, the other", _pull(redis))).tickets
    await after("withdraw.lua, granted", queue.withdraw(second))
    await after("withdraw.lua, scheduled", queue.withdraw(later))
    await redis.execute("DEL", counted)
    await after("a cancelled admission", queue.quotas.cancel_admission("limited", third.gid, counted, stored, 10_000))
    await redis.execute("DEL", keys.stored("limited"))
    await after("released bytes", queue.quotas.release_bytes("limited", stored, 10_000))
    await after("a pause", redis.execute("HSET", keys.PAUSED, "t:limited", 1))
    await redis.execute("DEL", keys.PAUSED)
    waiting = await claimable(broker)
    await after("a withdrawal", queue.withdraw(await ticket_of(redis, waiting.gid)))
    await after("a refill", Refill(redis, queue, broker.settings).check())


LEASE: Any = {"lease_ms": 60_000, "born": ""}


async def _pull(redis: Redis) -> Pulled:
    upstreams = [UpstreamLimits("default", 100, 1000, 1_000_000)]
    return await queue_commands.pull(
        redis, 8, **LEASE, tenant_running=1, other_tenants=b"", ageing_ms=60_000, upstreams=upstreams
    )


async def _done(redis: Redis, gid: str, outcome: Any) -> Done:
    return await queue_commands.done(
        redis, gid, "limited", "default", outcome, worker="w", retry_ms=0, reserved=5, used=1
    )


async def _losses(broker: Broker, seen: KeyLifetimes) -> None:
    """Restores to an empty Redis, and to one that lost the claim."""
    execute = broker.store.redis.execute
    for step in ("restore.lua, empty", "restore.lua, no claim"):
        created = await broker.enqueue(request_body(), idempotency_key=step)
        names = [keys.meta(created.id), keys.log(created.id)]
        dumps = [await execute("DUMP", name) for name in names]
        lost = await claim(broker.store.redis, created.id, broker.settings, "default")
        assert isinstance(lost, Claim)
        restore = restore_command(
            lost.gid,
            lost.own,
            lost.attempt,
            epoch=lost.epoch,
            new_epoch=new_epoch(),
            lease_ms=60_000,
            known_at_ms=lost.attempt >> 10,
            created_data=lost.created,
            first_event=lost.first_event,
            meta=lost.meta,
        )
        if "empty" in step:
            await execute("DEL", *map(str, restore[3:10]))
        else:
            for name, dump in zip(names, dumps, strict=True):
                await execute("RESTORE", name, 60_000, dump, "REPLACE")
        reply = await seen.after(step, broker.store.redis.run(RESTORE, list(map(str, restore[3:10])), restore[10:]))
        assert reply[0] == b"OK"


async def _processes(broker: Broker, seen: KeyLifetimes, sim: str) -> None:
    """A gateway and a worker, a followed generation, a second one while the reader blocks (the first never counts as
    idle, however long the worker takes), and a stream token."""
    url, more = broker.store.redis.url, {"TOKENCAST_RETENTION": str(RETENTION), "TOKENCAST_HEARTBEAT": "600"}
    async with gateway(url, **more) as api, worker(url, sim, **more, TOKENCAST_SLOTS="1"):
        busy = (await api.create(request_body("[[sim length=100000 speed=20]]", model="sim")))["id"]
        waiting = (await api.create(request_body(model="sim")))["id"]
        async with aclosing(api.follow(busy)) as stream, aclosing(api.follow(waiting)) as other:
            async for frame in stream:
                if frame.event == "chunk":
                    break
            await wait_until(lambda: clients_by_last_command(broker.store.redis, "xread"))
            await anext(other)
            await api.http.post(f"/v1/generations/{busy}/token")

            async def all_there() -> bool:
                await seen.look("a process")
                names = "\n".join(seen.longest)
                wanted = (keys.MODELS, keys.WORKER_HEALTH, keys.worker(""), keys.SIGNING_KEY, ":w:", keys.BELL)
                return all(name in names for name in wanted)

            await wait_until(all_there)
            asked = f"/v1/generations/{busy}/subscribers"
            await seen.after("a question", api.http.get(asked))
            await wait_until(lambda: _has_answer(broker, seen, busy))
            [name] = await broker.queue.redis.execute("ZRANGE", keys.WORKERS, 0, -1)
            await seen.after("drain", api.http.post(f"/v1/workers/{name.decode()}/drain"))
        await api.http.post(f"/v1/generations/{busy}/cancel")
    await seen.look("the end of a process")


async def _has_answer(broker: Broker, seen: KeyLifetimes, gid: str) -> bool:
    await seen.look("an answer")
    return bool(await broker.queue.redis.execute("EXISTS", keys.subscribers(gid)))


async def claimable(broker: Broker, **more: Any) -> Writer:
    body = request_body(metadata={"order": "17"}, tokencast={"group": "night"})
    return Writer(broker.store.redis, (await broker.enqueue(body, **more)).id)


async def remaining(broker: Broker, gid: str, key: str) -> list[float]:
    """The remaining seconds of log, tombstone and idempotency record."""
    names = [keys.log(gid), keys.meta(gid), keys.idempotency(shard_of(gid), "default", key)]
    return [ms / 1000 for ms in await broker.store.redis.pipeline([("PTTL", name) for name in names])]


async def test_log_tombstone_and_idempotency_record_have_matching_lifetimes(broker: Broker) -> None:
    """Seven days while the generation runs, renewed with its lease; the retention from its end."""
    redis = broker.store.redis
    created = await broker.enqueue(request_body(), idempotency_key="together")
    writer = await Writer(redis, created.id).claim()
    touched = [keys.meta(writer.gid), keys.log(writer.gid), keys.live(shard_of(writer.gid))]
    for renew in (False, True):
        if renew:  # as if it had run for a long time
            for name in (keys.log(writer.gid), keys.idempotency(shard_of(writer.gid), "default", "together")):
                await redis.execute("EXPIRE", name, 5)
            await redis.execute("HSET", keys.meta(writer.gid), "le", 1)
            await redis.run(TOUCH, touched, [writer.gid, writer.own, 60_000, 1])
        log_left, meta_left, record_left = await remaining(broker, writer.gid, "together")
        assert 7 * DAY - 30 < log_left <= 7 * DAY
        assert meta_left == pytest.approx(log_left + HOUR, abs=1)
        assert record_left == pytest.approx(log_left, abs=1)
    await writer.finish()
    log_left, meta_left, record_left = await remaining(broker, writer.gid, "together")
    assert RETENTION - 30 < log_left <= RETENTION
    assert meta_left == pytest.approx(log_left + HOUR, abs=1)
    assert record_left == pytest.approx(log_left, abs=1)


async def test_after_the_retention_a_generation_is_gone_for_an_hour_and_then_unknown(broker: Broker) -> None:
    """On every route. The idempotency key can be used again."""
    execute = broker.store.redis.execute
    async with gateway(broker.store.redis.url) as api:
        asked = {"idempotency-key": "once"}
        gid = (await api.create(request_body(ttl_seconds=60), **asked))["id"]
        writer = await Writer(broker.store.redis, gid).claim()
        await writer.append("a ")
        await writer.finish()
        paths = [f"/v1/generations/{gid}", f"/v1/generations/{gid}/events", f"/v1/chat/completions/{gid}"]
        assert [(await api.http.get(path)).status_code for path in paths] == [200, 200, 200]
        for name in (keys.log(gid), keys.idempotency(shard_of(gid), "default", "once")):
            assert 0 < await execute("PTTL", name) <= 60_000
            await execute("PEXPIREAT", name, 1)  # expire the minute
        answers = [await api.http.get(path) for path in paths]
        assert [(answer.status_code, answer.json()["error"]["code"]) for answer in answers] == [
            (410, "generation_gone")
        ] * 3
        assert (await api.http.post(f"{paths[0]}/cancel")).status_code == 410
        listed = (await api.http.get("/v1/generations")).json()["data"]
        assert gid not in [generation["id"] for generation in listed]
        assert await _indexes_with(broker, gid) == []
        again = await api.http.post("/v1/generations", json=request_body("else"), headers=asked)
        assert again.status_code == 202
        assert HOUR < await execute("TTL", keys.meta(gid)) <= HOUR + 60
        await execute("PEXPIREAT", keys.meta(gid), 1)  # expire the hour
        assert [(await api.http.get(path)).status_code for path in paths] == [404, 404, 404]


async def _indexes_with(broker: Broker, gid: str) -> list[str]:
    execute = broker.store.redis.execute
    names = [name.decode() for name in await execute("KEYS", f"{keys.index(shard_of(gid))}:*")]
    return [name for name in names if await execute("ZSCORE", name, gid) is not None]


@pytest.mark.parametrize("how", ["another creation", "listed", "deleted"])
async def test_an_expired_generation_leaves_only_a_tombstone(broker: Broker, how: str) -> None:
    """Without the request and the text, which can be long and private."""
    execute = broker.store.redis.execute
    gid = (await broker.enqueue(request_body("secret " * 1000, ttl_seconds=60), idempotency_key=how)).id
    writer = await Writer(broker.store.redis, gid).claim()
    await writer.append("a ")
    await writer.finish()
    await execute("PEXPIREAT", keys.log(gid), 1)  # expire the minute
    if how == "listed":
        await broker.store.list("default")
    elif how == "deleted":
        with pytest.raises(GenerationGone):
            await broker.delete(gid)
    else:
        others = (f"other {number}" for number in itertools.count())
        here = (key for key in others if idempotency_shard("default", key) == shard_of(gid))

        async def met() -> bool:
            await broker.enqueue(request_body(), idempotency_key=next(here))
            return not await _indexes_with(broker, gid)

        await wait_until(met)
    assert set(await execute("HKEYS", keys.meta(gid))) == {b"st", b"tn", b"ca", b"xa"}
    assert HOUR < await execute("TTL", keys.meta(gid)) <= HOUR + 60
    assert await _indexes_with(broker, gid) == []
    for asked in (broker.get(gid), broker.store.request(gid), broker.cancel(gid), broker.delete(gid)):
        with pytest.raises(GenerationGone):
            await asked
    # A reader that had started earlier and has read only a part:
    assert await broker.store.redis.run(KEEP_CHOICES, lifecycle_keys(gid), [gid, "[]"]) == b"GONE"
    assert set(await execute("HKEYS", keys.meta(gid))) == {b"st", b"tn", b"ca", b"xa"}


async def test_creations_remove_expired_entries_of_a_tenant_that_never_lists(broker: Broker) -> None:
    """Each creation removes some expired entries and keeps the others."""
    redis = broker.store.redis
    shard = shard_of((await broker.enqueue(request_body(), idempotency_key="first")).id)
    index, by_status = keys.index(shard, "default"), keys.index(shard, "default", "completed")
    dead = [f"gen_{n:010d}{shard}{'0' * 22}" for n in range(60)]
    for name in (index, by_status):
        await redis.execute("ZADD", name, *(part for gid in dead for part in (1, gid)))
    here = (key for key in map(str, itertools.count()) if idempotency_shard("default", key) == shard)
    living = [(await broker.enqueue(request_body(), idempotency_key=next(here))).id for _ in range(60)]
    members = {member.decode() for member in await redis.execute("ZRANGE", index, 0, -1)}
    assert set(living) <= members
    # About 5 are expected; half of them remaining has a probability of one in many millions.
    assert len(members & set(dead)) < 30
    completed = await redis.execute("ZRANGE", by_status, 0, -1)
    assert {member.decode() for member in completed} == members & set(dead)


async def test_a_ticket_lives_as_long_as_its_generation_can_wait(engine: str) -> None:
    """Regardless of the retention, which applies after the end and not in the queue."""
    async with EmbeddedRedis(binary=engine) as redis:
        settings = Settings(REDIS_URL=redis.url, retention=1)  # pyright: ignore[reportCallIssue]
        async with connect(settings=settings) as broker:
            created = await broker.enqueue(request_body())
            queue, log_ttl = broker.queue.redis, await broker.store.redis.execute("TTL", keys.log(created.id))
            for name in (keys.waiting("default:3", "default"), keys.turns("default:3"), keys.DEPTH):
                assert await queue.execute("TTL", name) >= log_ttl - 1
            scheduled = await broker.enqueue(request_body(tokencast={"delay_seconds": 7 * DAY}))
            assert scheduled.status == "queued"
            assert await queue.execute("TTL", keys.LATER) > 7 * DAY
