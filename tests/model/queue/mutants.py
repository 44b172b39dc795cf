"""Mutants of the queue's scripts, each without one guard. The tests must detect every mutant."""

from __future__ import annotations

from tests.model.queue.scripts import Mutant

SCHEDULED = [
    Mutant(
        "no grace",
        [("if now - born < grace(lease) then return", "if false then return")],
        "more calls than an upstream takes, after a loss or a standstill",
    ),
    Mutant(
        "grace only after a loss",
        [("if not born or jumped or missed then", "if not born then")],
        "more calls than an upstream takes, after a standstill or a clock step",
    ),
    Mutant(
        "a grant leaves the depth",
        [("  count(DEPTH, level, -1)\n  count(COUNTS, tenant, -1)\n  depth[level]", "  depth[level]")],
        "counts that differ from what waits",
    ),
    Mutant(
        "a call that goes on needs no room at another upstream",
        [("if not held and not (complete and calls", "if not held and not (true or calls")],
        "more calls than an upstream takes",
    ),
    Mutant(
        "a call that goes on elsewhere keeps its place",
        [("    redis.call('ZREM', places(from), gid)\n", "")],
        "two places of one call",
    ),
    Mutant(
        "limits without a lifetime",
        [("  redis.call('EXPIRE', key, WEEK)\n  local own", "  local own")],
        "a key that stays",
    ),
]
"""Mutants that the random schedules detect."""

DIRECTED = [
    (
        "a refused call",
        Mutant(
            "a ticket that comes back has no earlier turn",
            [("string.match(member, '%.1%.%d+$') and 0 or 1 / weight)", "0)")],
            "a tenant whose calls are refused falls behind",
        ),
    ),
    (
        "a refused call of a heavy tenant",
        Mutant(
            "a refused call gives a whole round back",
            [("and 0 or 1 / weight)", "and 0 or 1)")],
            "a tenant with a weight whose calls are refused gets more than its share",
        ),
    ),
    (
        "a refused call",
        Mutant(
            "a turn that exists is not moved earlier",
            [("back > 0 and 'LT' or 'NX'", "'NX'")],
            "a tenant whose calls are refused falls behind",
        ),
    ),
    (
        "the last priority",
        Mutant("no ageing", [("starved[level] = now - at > ageing", "starved[level] = false")], "starvation"),
    ),
    (
        "an idle tenant",
        Mutant(
            "an idle tenant keeps its old turn",
            [("math.max(tonumber(known[1] or 0), tonumber(known[2] or 0))", "tonumber(known[1] or 0)")],
            "a tenant that returns has all turns",
        ),
    ),
    (
        "several lanes",
        Mutant(
            "turns of one lane only",
            [("if newest > turn.tag then", "if false then")],
            "a tenant in two lanes has twice its share",
        ),
    ),
    (
        "an idle worker",
        Mutant(
            "a worker announces only the upstreams that it looks at",
            [("if now - at > 10000 or at > now then", "if false then")],
            "tickets that another worker takes into a lane of its own",
        ),
    ),
    (
        "a half-open circuit",
        Mutant(
            "a half-open circuit has any number of probes",
            [
                ("redis.call('HSET', u.key, 'probe', gid,", "redis.call('HSET', u.key, 'probe', '',"),
                ("    u.closed = true\n  end\n  redis.call('HSET', u.key, 'granted', int(now))\n", "  end\n"),
            ],
            "several calls of an upstream that is down",
        ),
    ),
    (
        "a probe at the limit",
        Mutant(
            "a probe passes the limit",
            [("math.min(1 + u.inflight, u.max > 0 and u.max or 1e9)", "1 + u.inflight")],
            "more calls than an upstream takes",
        ),
    ),
    (
        "a refused probe",
        Mutant(
            "a refusal of the probe keeps its place",
            [("if h.circuit == 'open' and h.probe == gid and", "if false and")],
            "nothing",
        ),
    ),
    (
        "a clock step",
        Mutant(
            "a busy time from before a clock step",
            [("till - now <= tonumber(h['for'] or 0)", "till - now <= 3600000")],
            "an upstream that nobody calls for half an hour",
        ),
    ),
    (
        "a withdrawn ticket",
        Mutant(
            "a withdrawn ticket leaves its tenant among the full ones",
            [("    redis.call('SREM', full(tenant), level)\n", "")],
            "a turn of nobody",
        ),
    ),
    (
        "a standstill",
        Mutant(
            "a standstill is noticed only after a whole lease",
            [("math.max(lease / 2, 3000)", "math.max(lease, 3000)")],
            "more calls than an upstream takes: places end two thirds of a lease after their last renewal",
        ),
    ),
    (
        "a start after a standstill",
        Mutant(
            "a worker that has just started notices no standstill",
            [("local alone = seen == '' and (not born or unused and settled)", "local alone = seen == ''")],
            "more calls than an upstream takes",
        ),
    ),
    (
        "places from the future",
        Mutant(
            "places after the clock went back stay",
            [("  redis.call('ZREMRANGEBYSCORE', key, '(' .. int(now + 2 * lease), '+inf')\n", "")],
            "places of dead workers that last an hour",
        ),
    ),
    (
        "a start within the grace",
        Mutant(
            "a worker that starts within the grace ends it",
            [("(not born or unused and settled)", "(not born or unused)")],
            "more calls than an upstream takes",
        ),
    ),
    (
        "a full tenant",
        Mutant(
            "a full tenant has no time at which it is looked at again",
            [("  redis.call('ZADD', FULL, till, tenant)\n", "")],
            "a tenant whose worker died waits forever",
        ),
    ),
]
"""Mutants that need a certain schedule: the name of the check that detects each."""
