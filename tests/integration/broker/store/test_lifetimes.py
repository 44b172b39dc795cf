"""Every key has a lifetime, whatever happens to a generation, and none outlives what store/keys.py says of it."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.errors import GenerationGone
from broker.ids import idempotency_shard, new_id, shard_of
from broker.queue.quotas import TenantLimits
from broker.queue.reaper import log
from broker.queue.tickets import Queue
from broker.settings.settings import Settings
from broker.store import keys
from broker.store.commands import KEEP_CHOICES, REAP, RESTORE, TOUCH, lifecycle_keys, restore_command
from broker.store.preflight import Preflight, mark_embedded
from broker.store.storage_share import Stored
from broker.store.store import new_epoch
from tests.support import WATCHFUL, Writer, gateway, last_asking, request_body, wait_until, worker
from worker.claims import Claim, claim, release

RETENTION = 600
HOUR, DAY = 3600, 86400
DIGEST = "[0-9a-f]{16}"
SAMPLES: dict[str, tuple[Any, str]] = {
    "gid": ("gen_0123456789" + "10" + "s" * 22, "gen_.{34}"),
    "shard": ("10", ".."),
    "tenant": ("sampletenant", "(default|limited)"),
    "minute": (77777777, "[0-9]+"),
    "status": ("samplestatus", "[a-z_]+"),
    "key": ("samplekey", "[0-9a-f]{64}"),
    "process": ("sampleprocess", "[0-9a-f]+"),
    "connection": (7777, "[0-9]+"),
    "ticket": ("sampleticket", r"gen_.{34}\.[0-9]+"),
    "worker_id": ("sampleworker", ".+"),
    "model": ("samplemodel", DIGEST),
    "code": ("samplecode", DIGEST),
    "name": ("samplename", DIGEST),
    "value": ("samplevalue", DIGEST),
}
"""Of each parameter that a builder of keys takes: a value, and what real ones look like."""
ARQS_OWN = re.compile("arq:(in-progress|retry):gen_.*")


class Kind:
    """One builder of broker/store/keys.py, or one constant, and how long its keys may live at most, in seconds."""

    def __init__(self, name: str, patterns: list[str], doc: str) -> None:
        self.name = name
        self.patterns = [re.compile(pattern) for pattern in patterns]
        _type, _contents, lifetime, _writers = " ".join(doc.split("\n\n")[0].split()).split(" · ")
        self.most = _seconds(lifetime)

    def matches(self, key: str) -> bool:
        return any(pattern.fullmatch(key) for pattern in self.patterns)


def _seconds(lifetime: str) -> int:
    """`7 d`, `60 s`, `expires + 1 h (…)`, `retention, 7 d at least`."""
    units = {"s": 1, "h": HOUR, "d": DAY}
    amounts = [int(n) * units[unit] for n, unit in re.findall(r"(\d+) ([shd])\b", lifetime)]
    if lifetime.startswith("expires"):
        return 7 * DAY + sum(amounts)
    return max([*amounts, RETENTION if "retention" in lifetime else 0])


def kinds() -> Iterator[Kind]:
    for name, value in vars(keys).items():
        if inspect.isfunction(value) and value.__module__ == keys.__name__ and not name.startswith("_"):
            yield Kind(name, list(_patterns(value)), value.__doc__ or "")
    for assigned, said in itertools.pairwise(TREE):
        if isinstance(assigned, ast.Assign) and isinstance(assigned.value, ast.Constant):
            assert isinstance(said, ast.Expr)
            assert isinstance(said.value, ast.Constant)
            yield Kind(ast.unparse(assigned.targets[0]), [re.escape(assigned.value.value)], said.value.value)


TREE = ast.parse(Path(inspect.getfile(keys)).read_text("utf-8")).body


def _patterns(builder: Any) -> Iterator[str]:
    """What it builds with all its parameters, and without the last ones that may be left out; but never without any
    of those: that is a prefix."""
    parameters = list(inspect.signature(builder).parameters.values())
    optional = sum(parameter.default is not parameter.empty for parameter in parameters)
    for left_out in range(max(optional, 1)):
        names = [parameter.name for parameter in parameters[: len(parameters) - left_out]]
        pattern = re.escape(builder(*(SAMPLES[name][0] for name in names)))
        if "key" in names:
            pattern = re.sub("[0-9a-f]{64}", lambda _: SAMPLES["key"][1], pattern)
        if any(SAMPLES[name][1] == DIGEST for name in names):
            pattern = re.sub(f"(?<=:){DIGEST}", lambda _: DIGEST, pattern)
        pattern = pattern.replace(r"\{10\}", r"\{..\}")
        for name in names:
            value, looks = SAMPLES[name]
            pattern = pattern.replace(re.escape(str(value)), looks) if name != "shard" else pattern
        yield pattern


class Seen:
    """What keys there were after each step, and for how long they would have lived on."""

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
            assert ms != -1, f"{step} has written {name.decode()} without a lifetime"
            self.longest[name.decode()] = max(ms / 1000, self.longest.get(name.decode(), 0))


@pytest.fixture
async def broker(engine: str) -> AsyncGenerator[Broker, None]:
    async with EmbeddedRedis(binary=engine) as redis:
        settings = Settings(REDIS_URL=redis.url, retention=RETENTION)  # pyright: ignore[reportCallIssue]
        async with connect(settings=settings) as connected:
            yield connected


async def test_every_key_has_its_lifetime_whatever_happens(broker: Broker, sim: str) -> None:
    """Each script, each transition, and everything that workers and gateways write beside them; and no kind of key is
    left out, nor one written that is not spelled in broker/store/keys.py."""
    seen = Seen(broker)
    await _lifecycle(broker, seen)
    await _losses(broker, seen)
    await _limits(broker, seen)
    await _processes(broker, seen, sim)
    await seen.after("the mark of an embedded server", mark_embedded(broker.queue.redis))
    watch = Preflight(broker.store.redis, broker.queue.redis, broker.settings, log)
    await seen.after("the watch", watch.wait_until_accepted())
    every = list(kinds())
    assert {kind.name for kind in every if not any(map(kind.matches, seen.longest))} == set()
    for name, seconds in seen.longest.items():
        of = [kind for kind in every if kind.matches(name)]
        assert of or ARQS_OWN.fullmatch(name), f"{name} is not spelled in broker/store/keys.py"
        for kind in of:
            assert seconds <= kind.most + 1, f"{name} would live for {seconds} s, {kind.name} says {kind.most}"


async def _lifecycle(broker: Broker, seen: Seen) -> None:
    redis, after = broker.store.redis, seen.after
    writer = await after("create.lua", claimable(broker, idempotency_key="k"))
    await after("claim.lua", writer.claim())
    await after("append.lua", writer.append("a "))
    await after("append.lua, waiting", writer.append_raw(b'{"reason":"x","retry_at":1}', kind="w"))
    touched = [keys.meta(writer.gid), keys.log(writer.gid), keys.live(shard_of(writer.gid))]
    await redis.execute("HSET", keys.meta(writer.gid), "le", 1)
    await after("touch.lua", redis.run(TOUCH, touched, [writer.gid, writer.own, 60_000]))
    await after("finish.lua", writer.finish())
    failed = await (await claimable(broker)).claim()
    await after("finish.lua, failed", failed.finish("failed", b'{"error":{"code":"x"}}'))
    for forget in (broker.cancel, broker.delete):
        queued, running, ended = [await claimable(broker) for _ in range(3)]
        await (await running.claim()).append("a ")
        await (await ended.claim()).finish()
        for what, each in (("queued", queued), ("running", running), ("ended", ended)):
            await after(f"{forget.__name__}.lua, {what}", forget(each.gid))
    released = await claimed(broker)
    await after("release.lua", release(redis, released))
    for budget, step in ((9, "reap.lua, again"), (1, "reap.lua, exhausted")):
        lost = await claimed(broker)
        await redis.execute("HSET", keys.meta(lost.gid), "le", 1)
        await redis.execute("ZADD", keys.live(shard_of(lost.gid)), 1, lost.gid)
        await after(step, redis.run(REAP, lifecycle_keys(lost.gid), [lost.gid, 5, budget, *WATCHFUL]))
    left = await claimable(broker)
    await redis.execute("ZADD", keys.live(shard_of(left.gid)), 1, left.gid)
    await after("reap.lua, queued", redis.run(REAP, lifecycle_keys(left.gid), [left.gid, 5, 9, *WATCHFUL]))
    await after("the list", broker.store.list("default"))


async def _limits(broker: Broker, seen: Seen) -> None:
    """What a tenant with limits leaves in the queue's Redis."""
    queue, after = Queue(broker.queue.redis, RETENTION, TenantLimits(running=1, queued=9, per_minute=9)), seen.after
    running, waiting = [new_id(n, "limited") for n in range(2)]
    for gid in (running, waiting):
        stored = Stored(100, int(time.time() * 1000))
        counted = await after("quota_admit.lua", queue.quotas.admit("limited", gid, stored, 10_000))
    await after("quota_acquire.lua", queue.quotas.acquire("limited", running))
    await after("quota_renew.lua", queue.quotas.renew({"limited": [running]}))
    assert not await queue.quotas.acquire("limited", waiting)
    await after("enqueue.lua, parked", queue.enqueue(waiting, "limited", 1, park=True))
    await queue.redis.execute("DEL", keys.running("limited"))
    await after("enqueue.lua, no longer parked", queue.enqueue(waiting, "limited", 1))
    await queue.redis.execute("ZADD", keys.parked("limited"), 0, f"{waiting}.1")
    await queue.redis.execute("EXPIRE", keys.parked("limited"), 60)
    await queue.redis.execute("DEL", keys.running("limited"))
    await after("quota_release.lua", queue.release(running, "limited"))
    await queue.redis.execute("DEL", counted)
    await after("a creation that was none", queue.quotas.cancel_admission("limited", waiting, counted, stored, 10_000))
    await queue.redis.execute("DEL", keys.stored("limited"))
    await after("bytes given back", queue.quotas.release_bytes("limited", stored, 10_000))
    await after("a withdrawal", queue.withdraw(waiting, "limited", 1))


async def _losses(broker: Broker, seen: Seen) -> None:
    """From an empty Redis, and from one that has forgotten the claim."""
    execute = broker.store.redis.execute
    for step in ("restore.lua, empty", "restore.lua, no claim"):
        created = await broker.enqueue(request_body(), idempotency_key=step)
        names = [keys.meta(created.id), keys.log(created.id)]
        dumps = [await execute("DUMP", name) for name in names]
        lost = await claim(broker.store.redis, created.id, broker.settings)
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


async def _processes(broker: Broker, seen: Seen, sim: str) -> None:
    """A gateway and a worker, a generation that is followed, one more while the reader blocks (the first does not pass
    for quiet, however long the worker takes), and a stream token."""
    url, more = broker.store.redis.url, {"TOKENCAST_RETENTION": str(RETENTION), "TOKENCAST_HEARTBEAT": "600"}
    async with gateway(url, **more) as api, worker(url, sim, **more, TOKENCAST_SLOTS="1"):
        busy = (await api.create(request_body("[[sim length=100000 speed=20]]", model="sim")))["id"]
        waiting = (await api.create(request_body(model="sim")))["id"]
        async with aclosing(api.follow(busy)) as stream, aclosing(api.follow(waiting)) as other:
            async for frame in stream:
                if frame.event == "chunk":
                    break
            await wait_until(lambda: last_asking(broker.store.redis, "xread"))
            await anext(other)
            await api.http.post(f"/v1/generations/{busy}/token")

            async def all_there() -> bool:
                await seen.look("a process")
                names = "\n".join(seen.longest)
                wanted = (keys.MODELS, keys.WORKER_HEALTH, keys.worker(""), keys.SIGNING_KEY, ":w:", keys.BELL)
                return all(name in names for name in wanted)

            await wait_until(all_there)
        await api.http.post(f"/v1/generations/{busy}/cancel")
    await seen.look("the end of a process")


async def claimable(broker: Broker, **more: Any) -> Writer:
    body = request_body(metadata={"order": "17"}, tokencast={"group": "night"})
    return Writer(broker.store.redis, (await broker.enqueue(body, **more)).id)


async def claimed(broker: Broker) -> Claim:
    outcome = await claim(broker.store.redis, (await claimable(broker)).gid, broker.settings)
    assert isinstance(outcome, Claim)
    return outcome


async def remaining(broker: Broker, gid: str, key: str) -> list[float]:
    """Seconds that log, tombstone and idempotency record have left."""
    names = [keys.log(gid), keys.meta(gid), keys.idempotency(shard_of(gid), "default", key)]
    return [ms / 1000 for ms in await broker.store.redis.pipeline([("PTTL", name) for name in names])]


async def test_log_tombstone_and_idempotency_record_live_and_die_together(broker: Broker) -> None:
    """Seven days ahead while the generation lives, renewed with its lease; from its end on for the retention."""
    redis = broker.store.redis
    created = await broker.enqueue(request_body(), idempotency_key="together")
    writer = await Writer(redis, created.id).claim()
    touched = [keys.meta(writer.gid), keys.log(writer.gid), keys.live(shard_of(writer.gid))]
    for renew in (False, True):
        if renew:  # it has run for long
            for name in (keys.log(writer.gid), keys.idempotency(shard_of(writer.gid), "default", "together")):
                await redis.execute("EXPIRE", name, 5)
            await redis.execute("HSET", keys.meta(writer.gid), "le", 1)
            await redis.run(TOUCH, touched, [writer.gid, writer.own, 60_000])
        log_left, meta_left, record_left = await remaining(broker, writer.gid, "together")
        assert 7 * DAY - 30 < log_left <= 7 * DAY
        assert meta_left == pytest.approx(log_left + HOUR, abs=1)
        assert record_left == pytest.approx(log_left, abs=1)
    await writer.finish()
    log_left, meta_left, record_left = await remaining(broker, writer.gid, "together")
    assert RETENTION - 30 < log_left <= RETENTION
    assert meta_left == pytest.approx(log_left + HOUR, abs=1)
    assert record_left == pytest.approx(log_left, abs=1)


async def test_behind_the_retention_it_is_gone_for_an_hour_and_then_unknown(broker: Broker) -> None:
    """For every way to ask; and the idempotency key is free again."""
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
            await execute("PEXPIREAT", name, 1)  # the minute is over
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
        await execute("PEXPIREAT", keys.meta(gid), 1)  # and the hour
        assert [(await api.http.get(path)).status_code for path in paths] == [404, 404, 404]


async def _indexes_with(broker: Broker, gid: str) -> list[str]:
    execute = broker.store.redis.execute
    names = [name.decode() for name in await execute("KEYS", f"{keys.index(shard_of(gid))}:*")]
    return [name for name in names if await execute("ZSCORE", name, gid) is not None]


@pytest.mark.parametrize("how", ["another is created", "listed", "deleted"])
async def test_of_what_has_expired_a_tombstone_is_left(broker: Broker, how: str) -> None:
    """Neither the request nor the text, which may be long, and somebody's."""
    execute = broker.store.redis.execute
    gid = (await broker.enqueue(request_body("secret " * 1000, ttl_seconds=60), idempotency_key=how)).id
    writer = await Writer(broker.store.redis, gid).claim()
    await writer.append("a ")
    await writer.finish()
    await execute("PEXPIREAT", keys.log(gid), 1)  # the minute is over
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
    # Who had asked before, and read less than all:
    assert await broker.store.redis.run(KEEP_CHOICES, lifecycle_keys(gid), [gid, "[]"]) == b"GONE"
    assert set(await execute("HKEYS", keys.meta(gid))) == {b"st", b"tn", b"ca", b"xa"}


async def test_a_tenant_that_never_lists_does_not_pile_up_what_has_expired(broker: Broker) -> None:
    """Each that comes makes room for some that are dead; what lives stays."""
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
    # About 5 are to be expected; half of them left would be one case in many millions.
    assert len(members & set(dead)) < 30
    completed = await redis.execute("ZRANGE", by_status, 0, -1)
    assert {member.decode() for member in completed} == members & set(dead)


async def test_a_ticket_lives_as_long_as_its_generation_may_wait(engine: str) -> None:
    """However short the retention: an end's, not a queue's."""
    async with EmbeddedRedis(binary=engine) as redis:
        settings = Settings(REDIS_URL=redis.url, retention=1)  # pyright: ignore[reportCallIssue]
        async with connect(settings=settings) as broker:
            created = await broker.enqueue(request_body())
            left = await broker.queue.redis.execute("TTL", keys.arq_job(f"{created.id}.1"))
            assert left >= await broker.store.redis.execute("TTL", keys.log(created.id)) - 1
