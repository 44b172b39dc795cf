"""A queue, its workers and its upstreams in one process: what the model knows, and what the scripts must keep.

The model knows every call that runs at an upstream, since a call ends with its worker. The places in Redis are only the
scripts' belief about them. `check` compares both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from broker.queue import commands
from broker.queue.commands import NOT_TOLD, Outcome, Place, Pulled, Ticket, ToldLimits, UpstreamLimits
from broker.store import keys
from tests.model.queue.scripts import CLOCK, Direct, now
from tests.model.storage import Storage
from tests.model.truth import check

LEASE = 15_000
HOLD = LEASE // 3
GRACE = LEASE // 3 + 1_000
AGEING = 60_000
HOUR = 3_600_000
LANES = ("a", "b", "a,b")
TENANTS = ("t0", "t1", "t2", "free")
BEGINNING = 1_700_000_000_000


@dataclass
class Call:
    """A call that runs at an upstream."""

    ticket: Ticket
    resource: str
    accepted: bool = False
    sent: int = 0
    is_probe: bool = False
    """It was sent to an upstream whose circuit was open, and nothing has been accepted there since."""


@dataclass
class Worker:
    number: int
    knows: Sequence[str]
    """Upstreams that it can call."""
    born: str = ""
    calls: dict[str, Call] = field(default_factory=dict[str, Call])
    next_hold: int = 0
    """In ms of real time, which no clock step changes."""


@dataclass(frozen=True)
class Setup:
    """What an example has: most calls of each upstream, which of them learn, their rates, limits of the tenants."""

    most: dict[str, int]
    adaptive: dict[str, bool]
    per_minute: dict[str, int]
    tenants: dict[str, int]
    weights: dict[str, float] = field(default_factory=dict[str, float])


class QueueWorld:
    """One queue. Each method is one step; `check` follows each step."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.direct = Direct(storage)
        self.steps: list[str] = []

    def begin(self, setup: Setup) -> None:
        self.storage.call("FLUSHALL")
        self.setup, self.real, self.offset, self.created = setup, 0, BEGINNING, 0
        self.newest = BEGINNING
        self.waiting: dict[str, Ticket] = {}
        self.lost: dict[str, Ticket] = {}
        self.workers = [Worker(0, ("a", "b")), Worker(1, ("a", "b"))]
        self.numbered = 2
        self.paused: set[str] = set()
        self.steps = [f"begin {setup}"]
        self._set_clock()

    # --- time -----------------------------------------------------------------------------------------------------

    @property
    def clock(self) -> int:
        return self.real + self.offset

    def _set_clock(self) -> None:
        self.newest = max(self.newest, self.clock)  # what was due stays so if the clock goes back
        self.storage.call("SET", CLOCK, self.clock, "EX", 86_400)

    def elapse(self, ms: int) -> None:
        """Let time pass. The workers renew their places as they do, and look for tickets each second."""
        self.steps.append(f"elapse {ms}")
        end = self.real + ms
        while True:
            due = min((worker.next_hold for worker in self.workers), default=end)
            self.real = max(self.real, min(due, end))
            self._set_clock()
            for worker in self.workers:
                if worker.next_hold <= self.real:
                    self._hold(worker)
            if self.real >= end:
                return

    def stand_still(self, ms: int) -> None:
        """Let time pass while the server does not respond. The workers notice it up to one period later."""
        self.steps.append(f"stand still {ms}")
        self.real += ms
        self._set_clock()
        for n, worker in enumerate(self.workers):
            worker.next_hold = self.real + HOLD * (n + 1) // (len(self.workers) + 1)

    def step_clock(self, ms: int) -> None:
        self.steps.append(f"clock {ms:+}")
        self.offset += ms
        self._set_clock()

    # --- tickets --------------------------------------------------------------------------------------------------

    def create(self, lane: str, priority: int, tenant: str, delay: int) -> None:
        self.created += 1
        gid = f"g{self.created:05}"
        not_before = self.clock + delay if delay else 0
        ticket = Ticket(gid, tenant, 1, lane, priority, 10, not_before or self.clock, not_before)
        self.steps.append(f"create {ticket}")
        check(self.offer(ticket), "a new ticket was there already")
        check(not self.offer(ticket), "a ticket was added twice")

    def offer(self, ticket: Ticket) -> bool:
        self.waiting[ticket.gid] = ticket
        return now(commands.offer(self.direct.redis, ticket, self._weight(ticket.tenant)))

    def withdraw(self, gid: str) -> None:
        ticket = self.waiting.pop(gid)
        self.steps.append(f"withdraw {gid}")
        check(now(commands.withdraw(self.direct.redis, ticket)), "a waiting ticket was not found")

    def position(self, gid: str) -> int | None:
        return now(commands.positions(self.direct.redis, [self.waiting[gid]]))[0]

    def refill(self) -> None:
        """A reaper puts everything back that the server has lost."""
        self.steps.append("refill")
        for ticket in self.lost.values():
            self.offer(ticket)
        self.lost = {}

    # --- workers --------------------------------------------------------------------------------------------------

    def pull(self, worker: Worker, most: int) -> Pulled:
        self.steps.append(f"pull {worker.number} {most}")
        before = Belief(self)
        pulled = self._pull(worker, most)
        granted = [self._granted(worker, ticket.decode()) for ticket in pulled.tickets]
        if str(pulled.born) != worker.born:
            worker.born = str(pulled.born)
            self._hold(worker)
        self.steps[-1] += f" -> {[(call.ticket.gid, call.resource) for call in granted]}"
        self._check_limits(before, granted)
        self._check_order(worker, before, granted)
        if len(granted) < most and self.clock - pulled.born >= GRACE and "all" not in self.paused:
            self._check_conserving(worker)
        check(not pulled.misplaced, f"a lane that a worker serves is misplaced: {pulled.misplaced}")
        return pulled

    def _pull(self, worker: Worker, most: int) -> Pulled:
        return now(
            commands.pull(
                self.direct.redis,
                most,
                lease_ms=LEASE,
                born=worker.born,
                tenant_running=0,
                other_tenants=msgspec.json.encode({t: [self._limit(t), self._weight(t)] for t in TENANTS}),
                ageing_ms=AGEING,
                upstreams=self._limits(worker),
            )
        )

    def _limits(self, worker: Worker) -> list[UpstreamLimits]:
        setup = self.setup
        return [
            UpstreamLimits(u, setup.most[u], setup.per_minute.get(u, 0), 0, setup.adaptive[u]) for u in worker.knows
        ]

    def _granted(self, worker: Worker, ticket: str) -> Call:
        """A worker takes a granted ticket and makes its call."""
        gid = ticket.split(".")[0]
        job = msgspec.json.decode(self.storage.call("GET", keys.arq_job(ticket)))
        self.storage.pipeline([("DEL", keys.arq_job(ticket)), ("ZREM", keys.READY, ticket)])
        check(gid in self.waiting, f"{gid} was granted, and does not wait")
        waited = self.waiting.pop(gid)
        _, tenant, resource, lane, priority, tokens, _ = job["a"]
        check((tenant, lane, priority, tokens) == (waited.tenant, waited.lane, waited.priority, waited.tokens), job)
        check(resource in waited.lane.split(","), f"{gid} of {waited.lane} was given to {resource}")
        check(waited.not_before_ms <= self.newest, f"{gid} was granted before its time")
        call = worker.calls[gid] = Call(waited, resource, sent=self.clock)
        return call

    def hold(self, worker: Worker) -> None:
        self.steps.append(f"hold {worker.number}")
        self._hold(worker)

    def _hold(self, worker: Worker) -> None:
        for _ in range(2):
            places = [
                Place(gid, call.resource, call.ticket.tenant if self._limit(call.ticket.tenant) else "", call.accepted)
                for gid, call in worker.calls.items()
            ]
            born = str(now(commands.hold(self.direct.redis, places, lease_ms=LEASE, born=worker.born)))
            known, worker.born = worker.born, born
            if known in ("", born):
                break
        worker.next_hold = self.real + HOLD

    def begun(self, worker: Worker, gid: str, told: ToldLimits = NOT_TOLD) -> None:
        self.steps.append(f"begun {gid} {told}")
        call = worker.calls[gid]
        call.accepted = True
        self._forget_probes(call.resource)
        tokens = call.ticket.tokens
        now(commands.begun(self.direct.redis, gid, call.resource, reserved=tokens, told=told))

    def _forget_probes(self, *resources: str) -> None:
        for call in self.calls():
            call.is_probe = call.is_probe and call.resource not in resources

    def done(
        self,
        worker: Worker,
        gid: str,
        outcome: Outcome,
        *,
        retry: int = -1,
        back: int | None = None,
        told: ToldLimits = NOT_TOLD,
    ) -> None:
        """End a call. `back`: ms until its generation is to be called again, which then returns to the queue."""
        call = worker.calls.pop(gid)
        self.steps.append(f"done {gid} {outcome} {retry} {back} {told}")
        age = max(0, self.clock - call.sent)
        tenant, resource, by = call.ticket.tenant, call.resource, str(worker.number)
        redis = self.direct.redis
        now(commands.done(redis, gid, tenant, resource, outcome, worker=by, retry_ms=retry, age_ms=age, told=told))
        if back is not None:
            ticket = call.ticket._replace(number=call.ticket.number + 1, not_before_ms=self.clock + back if back else 0)
            self.offer(ticket)

    def take(self, worker: Worker, gid: str) -> None:
        """A call breaks off, and another one goes on: at the next upstream of its lane, or at the same one. If none
        takes it, its generation ends here."""
        call = worker.calls[gid]
        self.steps.append(f"take {gid} {call.resource}")
        before, lane = Belief(self), call.ticket.lane.split(",")
        order = sorted(set(lane) & set(worker.knows), key=lambda one: one == call.resource)
        taken = now(
            commands.take(
                self.direct.redis,
                gid,
                call.resource,
                [each for one in order for each in self._limits(worker) if each.resource == one],
                lease_ms=LEASE,
                born=worker.born,
                tokens=call.ticket.tokens,
            )
        )
        self.steps[-1] += f" -> {taken.resource}"
        if taken.resource:
            self._check_taken(before, call, taken.resource)
            call.resource, call.accepted, call.sent, call.is_probe = taken.resource, False, self.clock, False
            runs, most = self.running(taken.resource), self.setup.most[taken.resource]
            check(not most or runs <= most, f"{runs} calls at {taken.resource}, which takes {most}")
        if str(taken.born) != worker.born:
            worker.born = str(taken.born)
            self._hold(worker)
        if not taken.resource:
            self.done(worker, gid, "none")

    def _check_taken(self, before: Belief, call: Call, resource: str) -> None:
        upstream = before.upstreams[resource]
        check(not upstream.closed and not upstream.half, f"a call at {resource}, which is closed")
        check(not upstream.waits, f"a call at {resource}, whose rate is used up")
        check("all" not in self.paused, "everything is paused")
        if resource != call.resource:
            check(upstream.used < upstream.limit, f"above what {resource} is known to take")
            places = self.storage.call("ZSCORE", keys.places(call.resource), call.ticket.gid)
            check(places is None, f"{call.ticket.gid} has a place at two upstreams")

    def die(self, worker: Worker) -> None:
        """A worker dies, and another one starts. The upstreams notice at once; its generations are gone here."""
        self.steps.append(f"die {worker.number}")
        self.workers.remove(worker)
        self.start()

    def start(self) -> None:
        self.workers.append(Worker(self.numbered, ("a", "b"), next_hold=self.real + HOLD))
        self.numbered += 1

    # --- disasters ------------------------------------------------------------------------------------------------

    def lose(self) -> None:
        """The server comes back empty. The first to notice is a worker that has seen it before."""
        self.steps.append("lose")
        self.storage.call("FLUSHALL")
        self._forget_probes("a", "b")
        self.lost |= self.waiting
        self.waiting = {}
        self.paused = set()
        self._set_clock()
        self._hold(next(worker for worker in self.workers if worker.born))

    def pause(self, what: str, on: bool) -> None:
        """An operator pauses or resumes."""
        self.steps.append(f"pause {what} {on}")
        if on:
            self.paused.add(what)
            self.storage.pipeline([("HSET", keys.PAUSED, what, 1), ("EXPIRE", keys.PAUSED, 86_400)])
            return
        self.paused.discard(what)
        self.storage.call("HDEL", keys.PAUSED, what)
        if what.startswith("t:") and self.storage.call("EXISTS", keys.full(what[2:])):
            self.storage.pipeline([("ZADD", keys.FULL, 0, what[2:]), ("EXPIRE", keys.FULL, 86_400)])

    # --- what must hold -------------------------------------------------------------------------------------------

    def _limit(self, tenant: str) -> int:
        return self.setup.tenants.get(tenant, 0)

    def _weight(self, tenant: str) -> float:
        return self.setup.weights.get(tenant, 1.0)

    def calls(self) -> Iterator[Call]:
        for worker in self.workers:
            yield from worker.calls.values()

    def running(self, resource: str) -> int:
        return sum(1 for call in self.calls() if call.resource == resource)

    def running_of(self, tenant: str) -> int:
        return sum(1 for call in self.calls() if call.ticket.tenant == tenant)

    def _check_limits(self, before: Belief, granted: Sequence[Call]) -> None:
        for resource in {call.resource for call in granted}:
            runs, most = self.running(resource), self.setup.most[resource]
            check(not most or runs <= most, f"{runs} calls at {resource}, which takes {most}")
            upstream = before.upstreams[resource]
            self._check_told(upstream, [call for call in granted if call.resource == resource])
            if not upstream.half:
                new = sum(1 for call in granted if call.resource == resource)
                check(upstream.used + new <= upstream.limit, f"above what {resource} is known to take")
            else:
                new = sum(1 for call in granted if call.resource == resource)
                check(new == 1, f"{new} probes of {resource}")
                self._check_probes(resource, granted)
            check(not upstream.closed, f"a call at {resource}, which is closed")
        for tenant in {call.ticket.tenant for call in granted}:
            limit = self._limit(tenant)
            check(not limit or self.running_of(tenant) <= limit, f"{tenant} is above its limit of {limit}")
            check(f"t:{tenant}" not in self.paused, f"{tenant} is paused")

    def _check_told(self, upstream: Upstream, granted: Sequence[Call]) -> None:
        units = {"r": len(granted), "t": sum(call.ticket.tokens for call in granted)}
        for kind, left in upstream.told.items():
            check(units[kind] <= left + 0.01, f"{units[kind]} {kind} of {left} that remain")

    def _check_probes(self, resource: str, granted: Sequence[Call]) -> None:
        for call in self.calls():
            if call.resource == resource and call.is_probe:
                check(not 0 <= self.clock - call.sent < LEASE, f"another probe of {resource} is under way")
        for call in granted:
            call.is_probe = call.is_probe or call.resource == resource

    def _check_order(self, worker: Worker, before: Belief, granted: Sequence[Call]) -> None:
        """A ticket of a later priority runs only if none of an earlier one could have had its place."""
        after = Belief(self)
        for call in granted:
            level = f"{call.ticket.lane}:{call.ticket.priority}"
            if before.is_starved(level):
                continue
            for other in self._runnable(worker, after, {call.resource}):
                check(
                    other.priority >= call.ticket.priority,
                    f"{call.ticket.gid} of priority {call.ticket.priority} runs, {other.gid} of {other.priority} waits",
                )

    def _check_conserving(self, worker: Worker) -> None:
        """After a pull that gave less than asked, nothing waits that could run."""
        belief = Belief(self)
        free = {u for u in worker.knows if belief.upstreams[u].is_open}
        for ticket in self._runnable(worker, belief, free):
            check(False, f"{ticket.gid} waits although it could run")

    def _runnable(self, worker: Worker, belief: Belief, resources: set[str]) -> Iterator[Ticket]:
        """The waiting tickets whose tenants have a place and that one of these upstreams serves."""
        for ticket in self.waiting.values():
            limit = self._limit(ticket.tenant)
            is_full = limit and belief.tenants.get(ticket.tenant, 0) >= limit
            is_due = ticket.not_before_ms <= self.clock
            serves = resources.intersection(ticket.lane.split(","), worker.knows)
            if is_due and serves and not is_full and f"t:{ticket.tenant}" not in self.paused:
                yield ticket

    def check(self) -> None:
        """Compare the stored counts, turns and places with the waiting tickets and the running calls."""
        stored = Stored(self.storage)
        check(stored.without_lifetime == [], f"no lifetime: {stored.without_lifetime}")
        scheduled, queued = set[str](), dict[str, str]()
        for level, tenant, members in stored.waiting:
            for member in members:
                queued[member.split(".")[0]] = f"{level} {tenant}"
        for entry in stored.later:
            scheduled.add(entry.split(" ")[4].split(".")[0])
        check(queued.keys() | scheduled == self.waiting.keys(), "the waiting tickets differ")
        check(not queued.keys() & scheduled, "a ticket waits twice")
        for gid, where in queued.items():
            ticket = self.waiting[gid]
            check(where == f"{ticket.lane}:{ticket.priority} {ticket.tenant}", f"{gid} is in {where}")
        self._check_counts(stored)
        self._check_turns(stored)

    def _check_counts(self, stored: Stored) -> None:
        depth: dict[str, int] = {}
        by_tenant: dict[str, int] = {}
        for level, tenant, members in stored.waiting:
            depth[level] = depth.get(level, 0) + len(members)
            by_tenant[tenant] = by_tenant.get(tenant, 0) + len(members)
        for entry in stored.later:
            tenant = entry.split(" ")[2]
            by_tenant[tenant] = by_tenant.get(tenant, 0) + 1
        check(stored.depth == depth, f"depth is {stored.depth}, but {depth}")
        check(stored.by_tenant == by_tenant, f"waiting of tenants is {stored.by_tenant}, but {by_tenant}")

    def _check_turns(self, stored: Stored) -> None:
        waits = {(level, tenant) for level, tenant, _ in stored.waiting}
        check(waits == stored.turns | stored.full & waits, f"no turn: {waits - stored.turns - stored.full}")
        check(not stored.turns & stored.full, f"at its limit, and has a turn: {stored.turns & stored.full}")
        check(stored.turns | stored.full == waits, f"turns of nobody: {(stored.turns | stored.full) - waits}")
        for _, tenant in stored.full:
            check(tenant in stored.fullz or f"t:{tenant}" in self.paused, f"{tenant} is never looked at again")


@dataclass
class Upstream:
    """An upstream as its state in Redis says."""

    used: int
    limit: float
    half: bool
    closed: bool
    waits: bool
    """Its rate is used up."""
    told: dict[str, float]
    """What remains of the limits that it has told: `r` requests, `t` tokens."""

    @property
    def is_open(self) -> bool:
        return not self.closed and not self.waits and self.used < self.limit


class Belief:
    """The state of the upstreams and the tenants' places in Redis, read by other code than the scripts'."""

    def __init__(self, world: QueueWorld) -> None:
        self._world, self._clock = world, world.clock
        storage = world.storage
        self.upstreams = {name: self._upstream(name) for name in ("a", "b")}
        valid = (f"({self._clock}", self._clock + 2 * LEASE)
        self.tenants = {t: storage.call("ZCOUNT", keys.running(t), *valid) for t in TENANTS}
        self.times = _texts(storage.call("HGETALL", keys.LEVEL_TIMES))

    def is_starved(self, level: str) -> bool:
        return self._clock - int(self.times.get(level, self._clock)) > AGEING

    def _upstream(self, name: str) -> Upstream:
        world, now_ms = self._world, self._clock
        h = _texts(world.storage.call("HGETALL", keys.upstream(name)))
        used = world.storage.call("ZCOUNT", keys.places(name), f"({now_ms}", now_ms + 2 * LEASE)
        most = world.setup.most[name] or 10**9
        limit = most
        busy = int(h.get("busy") or 0)
        if world.setup.adaptive[name]:
            learned = int(h["L"]) if h.get("L") else (world.setup.most[name] or 4)
            if h.get("ramp") == "1" and busy <= now_ms:
                learned = max(1, used)
            limit = min(limit, learned)
        need, since = int(h.get("need") or 2), max(int(h.get("cut") or 0), int(h.get("granted") or 0))
        if limit <= used < most and now_ms - min(now_ms, since) >= need * 1000:
            limit = used + 1  # one more is tried
        closed = f"u:{name}" in world.paused or 0 < busy - now_ms <= int(h.get("for") or 0)
        half = h.get("circuit") == "open"
        if half:
            opens, probe_ends = int(h["since"]) + int(h["wait"]), int(h.get("probeat") or 0)
            is_probed = bool(h.get("probe")) and 0 < probe_ends - now_ms <= 2 * LEASE
            closed = closed or 0 < opens - now_ms <= 61_000 or is_probed
            limit = min(most, used + 1)
        told = {kind: left for kind in "rt" if (left := self._told(h, kind)) is not None}
        units = {"r": 2 if float(h.get("r.limit") or 0) >= 10 else 1, "t": min(10, float(h.get("t.limit") or 0))}
        waits = any(left < units[kind] for kind, left in told.items())
        return Upstream(used, limit, half, closed, waits or self._rate_is_used_up(name, h), told)

    def _told(self, h: dict[str, str], kind: str) -> float | None:
        told = int(h.get(f"{kind}.told") or 0)
        if not told or not -1_000 <= self._clock - told <= 300_000:
            return None
        limit, window, at = (float(h[f"{kind}.{field}"]) for field in ("limit", "window", "at"))
        return min(limit, float(h[f"{kind}.left"]) + max(0, self._clock - at) * limit / window)

    def _rate_is_used_up(self, name: str, h: dict[str, str]) -> bool:
        per_minute = self._world.setup.per_minute.get(name, 0)
        if not per_minute:
            return False
        each = 60_000 / per_minute
        arrival = min(max(float(h.get("rt") or 0), self._clock), self._clock + 60_000)
        return arrival + each - max(10_000, each) > self._clock


class Stored:
    """The queue's keys."""

    def __init__(self, storage: Storage) -> None:
        names = [name.decode() for name in storage.call("KEYS", "*")]
        ttls = storage.pipeline([("PTTL", name) for name in names])
        self.without_lifetime = [name for name, ttl in zip(names, ttls, strict=True) if ttl == -1]
        self.waiting: list[tuple[str, str, list[str]]] = []
        self.turns: set[tuple[str, str]] = set()
        self.full: set[tuple[str, str]] = set()
        for name in names:
            if name.startswith("tc:wait:"):
                level, _, tenant = name.removeprefix("tc:wait:").rpartition(":")
                self.waiting.append((level, tenant, _members(storage, name)))
            elif name.startswith("tc:turn:"):
                level = name.removeprefix("tc:turn:")
                self.turns |= {(level, tenant) for tenant in _members(storage, name)}
            elif name.startswith("tc:full:"):
                tenant = name.removeprefix("tc:full:")
                self.full |= {(level.decode(), tenant) for level in storage.call("SMEMBERS", name)}
        self.later = _members(storage, keys.LATER)
        self.fullz = set(_members(storage, keys.FULL))
        self.depth = {name: int(n) for name, n in _texts(storage.call("HGETALL", keys.DEPTH)).items()}
        self.by_tenant = {name: int(n) for name, n in _texts(storage.call("HGETALL", keys.WAITING_COUNTS)).items()}


def _members(storage: Storage, name: str) -> list[str]:
    return [member.decode() for member in storage.call("ZRANGE", name, 0, -1)]


def _texts(flat: Sequence[bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}
