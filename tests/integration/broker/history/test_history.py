"""The history on a real Redis: the sums of several processes, their bounds, and outages."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator

import pytest

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis, free_port
from broker.history.buckets import bucket_of, percentile
from broker.history.reading import Wanted, read_history
from broker.history.recorder import ERRORS, PENDING_ENDINGS, SERIES, Figures, History, Series
from broker.history.records import HistoryRecord
from broker.ids import ALL_TENANTS
from broker.store import keys
from tests.support import request_body

TENANTS, MODELS, UPSTREAMS, CODES = ("anna", "ben"), ("m", "sim", "é:#"), ("one", "two"), ("timeout", "upstream_error")


@pytest.fixture
async def fresh(own_redis: EmbeddedRedis) -> AsyncGenerator[Broker, None]:
    async with connect(own_redis.url) as broker:
        yield broker


async def read(
    broker: Broker, tenant: str = ALL_TENANTS, model: str | None = None, upstream: str | None = None
) -> HistoryRecord:
    history = broker.history
    now = await history.clock.now()
    return await read_history(history.redis, now, Wanted(tenant, model, upstream), 60, lambda name: name)


class Tally:
    """What the history must tell, kept event by event."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[Series, str]] = Counter()
        self.times: list[tuple[Series, float]] = []
        self.errors: Counter[tuple[Series, str, str]] = Counter()

    def step(self, dice: random.Random, history: Figures) -> None:
        """Record a random event."""
        series = Series(dice.choice(TENANTS), dice.choice(MODELS), dice.choice(UPSTREAMS))
        code, gid, tokens, seconds = dice.choice(CODES), f"gen_{dice.random()}", dice.randrange(50), dice.random() * 9
        match dice.randrange(8):
            case 0:
                history.created(series.tenant, series.model)
                self.counts[series._replace(upstream=""), "created"] += 1
            case 1:
                history.started(series)
                self.counts[series, "started"] += 1
            case 2:
                history.completed(series)
                self.counts[series, "completed"] += 1
            case 3:
                history.failed(series, code, gid)
                self.counts[series, "failed"] += 1
                self.errors[series, code, "failed"] += 1
            case 4:
                history.cancelled(series)
                self.counts[series, "cancelled"] += 1
            case 5:
                history.tokens(series, tokens)
                self.counts[series, "tokens"] += tokens
            case 6:
                history.returned(series, code, gid)
                self.errors[series, code, "returned"] += 1
            case _:
                history.first_token(series, seconds)
                self.times.append((series, seconds))

    def check(self, record: HistoryRecord, wanted: Wanted) -> None:
        def is_wanted(series: Series) -> bool:
            of_tenant = wanted.tenant in (ALL_TENANTS, series.tenant)
            return of_tenant and wanted.matches(series.model, series.upstream)

        for name in ("created", "started", "completed", "failed", "cancelled", "tokens"):
            total = sum(count for (series, what), count in self.counts.items() if what == name and is_wanted(series))
            expected = None if name == "created" and wanted.upstream else total
            assert getattr(record.total, name) == expected, name
            if expected is not None:
                assert sum(getattr(minute, name) for minute in record.data) == expected
        times = Counter(bucket_of(seconds) for series, seconds in self.times if is_wanted(series))
        assert record.total.first_token.count == sum(times.values())
        p95 = percentile(times, 0.95)
        assert record.total.first_token.p95 == (None if p95 is None else pytest.approx(p95, rel=0.01))
        errors: Counter[tuple[str, str, str, str]] = Counter()
        for (series, code, kind), count in self.errors.items():
            if is_wanted(series):
                errors[code, series.model, series.upstream, kind] += count
        found = {
            (one.code, one.model, one.upstream, kind): count
            for one in record.errors
            for kind, count in (("failed", one.failed), ("returned", one.returned))
            if count
        }
        assert found == dict(errors)


async def test_the_sums_of_several_processes_add_up(fresh: Broker) -> None:
    """Whatever each saw, whenever each sent it; by tenant, model and upstream."""
    dice, tally = random.Random(1), Tally()
    processes = [History(fresh.queue.redis, fresh.store.redis) for _ in range(4)]
    for _ in range(30):
        for _ in range(40):
            tally.step(dice, dice.choice(processes))
        await asyncio.gather(*(one.flush() for one in dice.sample(processes, 2)))
    await asyncio.gather(*(one.flush() for one in processes))
    for wanted in (
        *(Wanted(ALL_TENANTS), Wanted("anna"), Wanted("ben", "m"), Wanted(ALL_TENANTS, None, "one")),
        *(Wanted("anna", "é:#", "two"), Wanted("nobody")),
    ):
        record = await read(fresh, *wanted)
        tally.check(record, wanted)
        if wanted.tenant != "nobody":
            assert (record.models, record.upstreams) == (sorted(MODELS), sorted(UPSTREAMS))


async def test_many_models_and_codes_are_counted_together(fresh: Broker) -> None:
    """What callers invent takes a bounded space, in the process and in Redis; nothing is lost of the sums."""
    history = fresh.history
    for number in range(3 * SERIES):
        history.failed(Series("anna", f"model {number}", "up"), f"code {number}", f"gen_{number}")
    await history.flush()
    for number in range(3 * ERRORS):
        history.failed(Series("anna", "model 0", "up"), f"code {number}", f"gen_{number}")
    await history.flush()
    record = await read(fresh, "anna")
    assert record.total.failed == 3 * SERIES + 3 * ERRORS
    assert sum(one.failed for one in record.errors) == record.total.failed
    assert len(record.models) in range(SERIES, 2 * SERIES + 1)  # a minute may end between the two
    assert {one.model for one in record.errors} >= {None, "model 0"}
    for number in range(PENDING_ENDINGS + 10):
        history.completed(Series("anna", f"model {number}", "up"))
        history.ended("gen_unknown")
    sums, endings = history.take()
    assert (len(sums.counts), len(endings)) == (1001, PENDING_ENDINGS)


async def test_an_outage_costs_only_the_figures_of_its_time(fresh: Broker) -> None:
    async with connect(f"redis://127.0.0.1:{free_port()}") as unreachable:
        away = unreachable.history
        away.samples = True
        away.created("anna", "m")
        away.ended("gen_x")
        await away.flush()
        assert away.take()[0].counts == {}
    history = fresh.history
    history.created("anna", "m")
    await history.flush()
    assert (await read(fresh, "anna")).total.created == 1


async def test_endings_by_others_are_looked_up_and_deletions_change_nothing(fresh: Broker) -> None:
    """Cancelled, expired, deleted while waiting; a deleted generation keeps its place in the figures."""
    gids = [(await fresh.enqueue(request_body(model="m"))).id for _ in range(4)]
    late = await fresh.enqueue(request_body(model="late", tokencast={"queue_timeout": 1}))
    await fresh.cancel(gids[0])
    await fresh.cancel(gids[0])
    await fresh.delete(gids[1])
    await fresh.store.redis.execute("HSET", keys.meta(late.id), "qd", "1")
    assert await fresh.expire(late.id)
    await fresh.history.flush()
    await fresh.delete(gids[0])
    await fresh.history.flush()
    record = await read(fresh)
    total = record.total
    assert (total.created, total.failed, total.cancelled) == (5, 1, 2)
    [error] = record.errors
    assert (error.code, error.model, error.upstream, error.sample) == ("queue_timeout", "late", None, late.id)
    assert (error.failed, error.returned) == (1, 0)


async def test_the_queue_depth_is_the_most_of_the_minute(fresh: Broker) -> None:
    history = fresh.history
    history.samples = True
    gids = [(await fresh.enqueue(request_body())).id for _ in range(3)]
    await history.flush()
    for gid in gids:
        await fresh.cancel(gid)
    await history.flush()
    everywhere = await read(fresh)
    assert everywhere.total.queue_depth == 3
    assert max(minute.queue_depth or 0 for minute in everywhere.data) == 3
    assert (await read(fresh, upstream="default")).total.queue_depth == 3
    assert (await read(fresh, upstream="another")).total.queue_depth == 0
    assert (await read(fresh, model="m")).total.queue_depth is None
    owner = (await fresh.store.redis.execute("HGET", keys.meta(gids[0]), "tn")).decode()
    assert (await read(fresh, owner)).total.queue_depth == 3
    assert (await read(fresh, "nobody")).total.queue_depth == 0
