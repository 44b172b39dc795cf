"""All Redis keys: type, contents, lifetime and writers. No other module spells a key.

There are two Redis servers, which may be the same: the logs' Redis (TOKENCAST_STREAMS_URL) is the source of truth, and
the queue's Redis (REDIS_URL) has only data that can be rebuilt from it. On the logs' Redis all keys of a shard have the
same hash tag, so that a script can change log, status and indexes atomically, and one XREAD can follow many generations
of a shard on a cluster. Every key has a lifetime. "expires" below means end + retention, or seven days from now while
the generation has not ended (renewed with its lease, and by the reaper).
"""

from __future__ import annotations

import hashlib

from broker.ids import shard_of

# --- logs' Redis --------------------------------------------------------------------------------------


def meta(gid: str) -> str:
    """hash · all data of one generation except its log · expires + 1 h (as a tombstone) · lifecycle scripts

    tn tenant · md model · rq request body for the upstream (a long one is removed on cancellation) · mt metadata JSON ·
    pol fail|restart · ca created ms · ttl retention ms · ik idempotency record's key · fp body's fingerprint ·
    st status · a attempt id · n last seq ·
    own "<attempt>.<token>" of the worker that may write · k number of attempts · x crash budget used · le lease end
    ms · ls lease ms · why reason of the last requeue · tk ticket number · sa started ms · fa first token ms · ea ended
    ms · xa expires ms · by bytes in the log · ct completion chunks · pt prompt tokens, estimated · fr finish reason ·
    us usage JSON · er error JSON · res merged choices JSON · tp traceparent, if tracing is on

    Of the queue ("" = none): pr priority · ln lane, the upstreams that serve the model · qd ms at which the waiting
    ends · ra ms before which it must not run · gr group · wh webhook JSON · ro generation that this one repeats · up
    upstream that has it · wr newest reason of its waiting · rt ms of the next try · we error JSON of the last refusal ·
    qt ms for which it may wait · es tokens that a call reserves · an ms of its newest announcement as waiting · nt ms
    before which it must not run again · nb upstream errors before the first token · fb ms of the first of these · na
    newest attempt id, also of a claim whose attempt has not begun

    pv first line of the prompt, for lists ("" = none)

    A deleted generation keeps only st, tn, ca and xa; so does an expired one, once a script has found it
    (lua/expired.lua).
    """
    return f"tc:{{{shard_of(gid)}}}:m:{gid}"


def log(gid: str) -> str:
    """stream · id `<attempt>-<seq>`, fields t m d (broker/events.py) · expires · lifecycle scripts and append"""
    return f"tc:{{{shard_of(gid)}}}:l:{gid}"


def live(shard: str) -> str:
    """zset · generation → ms at which the reaper must check it · 8 d · lifecycle scripts and touch"""
    return f"tc:{{{shard}}}:live"


def index(shard: str, tenant: str | None = None, status: str | None = None) -> str:
    """zset · generation → created ms · 32 d · lifecycle scripts; create, list and counts remove expired members

    Without a tenant: the base from which scripts derive `<base>:<tenant>` and `<base>:<tenant>:<status>`. The scripts
    keep the same indexes for ALL_TENANTS.
    """
    return ":".join(filter(None, (f"tc:{{{shard}}}:i", tenant, status)))


def model_index(shard: str, tenant: str, model: str) -> str:
    """zset · generation → created ms · 32 d · lifecycle scripts; create and list remove expired members

    lua/secondary.lua derives the keys of these indexes as well. One with a single member expires with its generation.
    """
    return f"{index(shard, tenant)}:m:{_digest(model)}"


def code_index(shard: str, tenant: str, code: str) -> str:
    """zset · failed generation with this error code → created ms · 32 d · as `model_index`"""
    return f"{index(shard, tenant)}:c:{_digest(code)}"


def metadata_index(shard: str, tenant: str, name: str, value: str) -> str:
    """zset · generation with this pair in its metadata → created ms · 32 d · as `model_index`"""
    return f"{index(shard, tenant)}:k:{_digest(name, value)}"


def group(shard: str, tenant: str, name: str) -> str:
    """hash · status → number of generations, also of expired ones; pt, ct tokens of prompts and completions; first
    creation, last end in ms · 32 d · lifecycle scripts"""
    return f"tc:{{{shard}}}:g:{_digest(tenant, name)}"


def group_index(shard: str, tenant: str, name: str) -> str:
    """zset · generation of the group → created ms · 32 d · as `model_index`"""
    return f"{group(shard, tenant, name)}:i"


def _digest(*values: str) -> str:
    return hashlib.sha1("\0".join(values).encode(), usedforsecurity=False).hexdigest()[:16]


def idempotency(shard: str, tenant: str, key: str) -> str:
    """string · "<generation> <fingerprint>" · expires · create, restore, delete; lifecycle scripts renew it"""
    return f"tc:{{{shard}}}:idem:{tenant}:{hashlib.sha256(key.encode()).hexdigest()}"


def activity(shard: str) -> str:
    """stream · tn tenant, g generation, e event, d summary JSON; about 2,000 entries · 1 d · lifecycle scripts"""
    return f"tc:{{{shard}}}:act"


def epoch(shard: str) -> str:
    """string · "<ms>.<random>", name of this data set; it changes if Redis lost its data · 30 d · create, restore"""
    return f"tc:{{{shard}}}:ep"


def webhook_hosts(shard: str) -> str:
    """zset · hash of a receiver's host → ms at which one of its entries is due, or the host is called again · 2 d ·
    lifecycle scripts and webhook_… scripts, which derive the outbox of a host from it"""
    return f"tc:{{{shard}}}:hk"


def webhook_outbox(shard: str, host: str) -> str:
    """zset · `<generation>.<event>` → ms at which it is due, 1 = at once, redelivered by hand; while it is delivered,
    end of its lease · 2 d · lifecycle scripts and webhook_… scripts"""
    return f"{webhook_hosts(shard)}:{host}"


def webhook_body(shard: str, gid: str | None = None) -> str:
    """hash · what a webhook announces, and its attempts · 25 h after the ending · lifecycle scripts and webhook_…
    scripts

    url · ev event · ho host · at ended ms · ti ms of the last retry · d summary JSON of the generation · mt, us its
    metadata and usage, if the summary leaves them out · tn tenant · n number of attempts · log the newest 50 of these,
    lines `<number> <JSON>`

    Without a generation: the base of these keys, which never exists itself.
    """
    return ":".join(filter(None, (f"tc:{{{shard}}}:hb", gid)))


def wake(shard: str, process: str, connection: int) -> str:
    """stream · one entry; a new entry wakes the reader connection that blocks on it · 60 s · gateway"""
    return f"tc:{{{shard}}}:w:{process}:{connection}"


def rights(shard: str) -> str:
    """string · a text for testing a user's rights, on the queue's Redis too · 10 s · gateways and workers"""
    return f"tc:{{{shard}}}:rights"


# --- queue's Redis -------------------------------------------------------------------------------------

# The scripts in broker/queue/lua derive their keys themselves: the queue is never on a cluster. A *level* is
# `<lane>:<priority>`; a lane is the names of the upstreams that serve a model, joined by commas.


def waiting(level: str, tenant: str) -> str:
    """zset · waiting ticket `<generation>.<number>.<tokens>` → created ms, or scheduled ms · 7 d · offer; pull and
    withdraw remove"""
    return f"tc:wait:{level}:{tenant}"


def turns(level: str) -> str:
    """zset · tenant that waits in this level and is not at its limit → fair tag · 7 d · offer, pull, done"""
    return f"tc:turn:{level}"


def tags(priority: int) -> str:
    """hash · tenant → its newest fair tag, "" → that of the newest turn · 7 d · offer, pull"""
    return f"tc:tag:{priority}"


DEPTH = "tc:depth"
"""hash · level → number of waiting tickets · 7 d · offer, pull, withdraw"""

LEVEL_TIMES = "tc:at"
"""hash · level → ms of its newest grant, or since when it waits · 7 d · offer, pull"""

WAITING_COUNTS = "tc:qn"
"""hash · tenant → number of its waiting and scheduled tickets · 7 d · offer, pull, withdraw"""

LATER = "tc:later"
"""zset · `<lane> <priority> <tenant> <order> <ticket>` that must not run yet → ms · 14 d · offer; pull moves"""


def full(tenant: str) -> str:
    """set · levels in which a tenant at its limit waits · 7 d · pull; done and pull end it"""
    return f"tc:full:{tenant}"


FULL = "tc:fullz"
"""zset · tenant at its limit → ms at which the first of its places ends · 7 d · pull, done"""


def running(tenant: str) -> str:
    """zset · running generation of a tenant with a limit → ms at which its place ends · 7 d · pull, hold, done"""
    return f"tc:r:{tenant}"


def upstream(resource: str) -> str:
    """hash · state of an upstream · 7 d · pull, begun, done

    max rpm tpm limits as configured (and maxat rpmat tpmat: since when) · omax orpm otpm an operator's limits · L
    learned limit · ceil its known ceiling · need, held rounds until it is tried higher · cut ms of the newest cut ·
    granted ms of the newest place · busy ms until which nobody calls, for: how long that was · ramp 1: begin with what
    runs · rt tt theoretical arrival times of the rates (GCRA) · circuit, since, wait, probe, probeat, probed · okat ms
    of the newest accepted call · refused number of refused calls · r.limit r.window r.left r.at r.told r.longest, and
    the same with t.: limits of requests and of tokens that the upstream has told (resources.lua)
    """
    return f"tc:u:{resource}"


def places(resource: str) -> str:
    """zset · generation with a call at this upstream → ms at which its place ends · 7 d · pull, hold, done"""
    return f"tc:ur:{resource}"


def accepted(resource: str) -> str:
    """set · generation whose call this upstream accepted · 1 d · begun, hold, done"""
    return f"tc:ub:{resource}"


def failed(resource: str) -> str:
    """zset · `<generation> <worker>` of a failed call → ms · 300 s · done; begun ends it"""
    return f"tc:fg:{resource}"


READY = "tc:ready"
"""zset (arq's) · granted ticket → 1 · 7 d · pull; arq removes"""

BELL = "tc:bell"
"""list · empty strings, at most 64; each signals that something may run · 60 s · offer, begun, done"""

BORN = "tc:born"
"""string · ms since which the places can be trusted · 7 d · pull, hold"""

TICK = "tc:tick"
"""string · ms of the newest pull or hold · 7 d · pull, hold"""

PAUSED = "tc:paused"
"""hash · `all`, `u:<upstream>` or `t:<tenant>` → ms since when it is paused · 30 d, renewed by pull · operators"""


def refill(shard: str) -> str:
    """string · marks that a process puts the waiting generations of a shard back into the queue · 60 s · reapers"""
    return f"tc:refill:{shard}"


def queued(tenant: str) -> str:
    """zset · generation that is being created → ms at which its reservation ends · 1 d · quota_admit; offer removes"""
    return f"tc:q:{tenant}"


def creations(tenant: str, minute: int | None = None) -> str:
    """int · generations requested in that minute since the epoch · 120 s · quota_admit

    Without a minute: the base from which the script derives it.
    """
    return f"tc:rate:{tenant}" if minute is None else f"tc:rate:{tenant}:{minute}"


def stored(tenant: str) -> str:
    """hash · hour since the epoch → bytes of requests that expire until then; hour and sum: the total, as of that hour
    · 32 d · quota_admit; delete and cancel subtract"""
    return f"tc:bytes:{tenant}"


OLD_QUEUE = "tc:queue"
"""zset · ticket `<generation>.<number>` that a process of 0.1.0 wrote · 7 d · that process; workers remove"""


def old_parked(tenant: str) -> str:
    """zset · ticket of 0.1.0 whose tenant was at its limit → 0 · 7 d · a process of 0.1.0; workers remove"""
    return f"tc:park:{tenant}"


SIGNING_KEY = "tc:secret"
"""string · key that signs stream tokens unless TOKENCAST_SECRET is set · 30 d, renewed with each token · gateways"""

KEY_USES = "tc:keyuse"
"""hash · first digits of an API key's hash → unix seconds of its last use · 400 d, renewed · gateways"""

SHARD_COUNT = "tc:shards"
"""string · number of shards of the logs' Redis · 30 d, renewed · workers and gateways"""

EMBEDDED = "tc:embedded"
"""string · marks a server that does not persist its data on purpose · 30 d · `tokencast dev`"""

WORKERS = "tc:workers"
"""zset · worker id → last seen ms · 1 d · workers"""

MODELS = "tc:models"
"""hash · upstream → JSON list of the models that it announces · 1 d · workers"""

WORKER_HEALTH = "tc:worker-health"
"""string (arq's) · arq's health record; ours is WORKERS · 1 h · arq"""


def arq_job(ticket: str) -> str:
    """string (arq's) · JSON of a granted ticket: generation, tenant, upstream, lane, priority, tokens · 2 h · pull; arq
    removes"""
    return f"arq:job:{ticket}"


def arq_starting(ticket: str) -> str:
    """string (arq's) · a worker has taken the ticket, and may have called · 15 s · arq"""
    return f"arq:in-progress:{ticket}"


def worker(worker_id: str) -> str:
    """hash · slots, running, host, pid, version, upstreams JSON, started ms, draining 0 or 1, runs JSON (up to 100
    running generations) · 15 s · that worker"""
    return f"tc:w:{worker_id}"


def drain(worker_id: str) -> str:
    """string · asks a worker to drain and exit · 60 s · operators; the worker reads it with its heartbeat"""
    return f"tc:drain:{worker_id}"


def history(tenant: str = "", minute: int | None = None) -> str:
    """hash · figures of a tenant, or of ALL_TENANTS, in that minute since the epoch · 2 h · gateways and workers

    `#<model>\\0<upstream>` number of a series, 0 is that of all further ones; # number of series · `<n>` counts of
    series n, as `<name>:<count>,…`: c created, s started, d completed, f failed, x cancelled, t tokens, h<bucket> first
    tokens by the time that they took (broker/history/buckets.py) · errors of series n: `f:<n>:<code>` failed, r:…
    returned to the queue, l:… "<ms> <generation>", the latest; f number of these · q most waiting generations,
    `q:<resource>` for an upstream

    Without a minute, or without both: the bases from which the scripts derive it.
    """
    base = f"tc:hist:{tenant}" if tenant else "tc:hist"
    return base if minute is None else f"{base}:{minute}"


ASKED = "tc:asked"
"""zset · generation whose subscribers somebody asks for → ms · 60 s · gateways"""


def subscribers(gid: str) -> str:
    """hash · gateway → JSON: its subscribers of this generation, and when it told them · 60 s · gateways"""
    return f"tc:subs:{gid}"
