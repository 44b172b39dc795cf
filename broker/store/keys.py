"""Every Redis key, with its type, contents, lifetime and writers. The only place that spells one.

Two servers, which may be one: the *streams* Redis (TOKENCAST_STREAMS_URL) holds everything that is true, the
*queue* Redis (REDIS_URL) only what can be rebuilt from it. On the streams Redis all keys of a shard carry one
hash tag, so a script keeps log, status and indexes together atomically, and one XREAD follows many
generations of a shard on a Cluster. Every key has a lifetime. `expires` below is end + retention, or seven
days from now while the generation lives (renewed with its lease, and by the reaper).
"""

from __future__ import annotations

import hashlib

from broker.ids import shard_of

# --- streams Redis -------------------------------------------------------------------------------------


def meta(gid: str) -> str:
    """hash · all about one generation · expires + 1 h (the tombstone) · lifecycle scripts

    tn tenant · md model · rq request body for the upstream (a long one not once it is cancelled) · mt metadata JSON ·
    pol fail|restart · ca created ms · ttl retention ms · ik idempotency record's key · fp body's fingerprint ·
    st status · a attempt id · n last seq ·
    own "<attempt>.<token>" of the worker that may write · k attempts so far · x crash budget used · le lease end
    ms · ls lease ms · why reason of the last requeue · tk ticket number · sa started ms · fa first token ms · ea ended
    ms · xa expires ms · by bytes in the log · ct completion chunks · pt prompt tokens, estimated · fr finish reason ·
    us usage JSON · er error JSON · res merged choices JSON · tp traceparent, where traces are kept

    Of one that is deleted only st, tn, ca and xa are left; of one that has expired too, once it is come upon
    (lua/expired.lua).
    """
    return f"tc:{{{shard_of(gid)}}}:m:{gid}"


def log(gid: str) -> str:
    """stream · id `<attempt>-<seq>`, fields t m d (broker/events.py) · expires · lifecycle scripts and append"""
    return f"tc:{{{shard_of(gid)}}}:l:{gid}"


def live(shard: str) -> str:
    """zset · generation → ms at which the reaper must look at it · 8 d · lifecycle scripts and touch"""
    return f"tc:{{{shard}}}:live"


def index(shard: str, tenant: str | None = None, status: str | None = None) -> str:
    """zset · generation → its created ms · 32 d · lifecycle scripts; create, list and counts drop what has expired

    Without a tenant: the base from which the scripts derive `<base>:<tenant>` and `<base>:<tenant>:<status>`.
    """
    return ":".join(filter(None, (f"tc:{{{shard}}}:i", tenant, status)))


def idempotency(shard: str, tenant: str, key: str) -> str:
    """string · "<generation> <fingerprint>" · expires · create, restore, delete; lifecycle scripts renew it"""
    return f"tc:{{{shard}}}:idem:{tenant}:{hashlib.sha256(key.encode()).hexdigest()}"


def activity(shard: str) -> str:
    """stream · tn tenant, g generation, e event, d summary JSON; about 2,000 entries · 1 d · lifecycle scripts"""
    return f"tc:{{{shard}}}:act"


def epoch(shard: str) -> str:
    """string · "<ms>.<random>", names this data set: another means Redis came back empty · 30 d · create, restore"""
    return f"tc:{{{shard}}}:ep"


def wake(shard: str, process: str, connection: int) -> str:
    """stream · one entry; adding one wakes the reader connection that blocks on it · 60 s · gateway"""
    return f"tc:{{{shard}}}:w:{process}:{connection}"


def rights(shard: str) -> str:
    """string · a text on which a user's rights are tried, on the queue's server too · 10 s · gateways and workers"""
    return f"tc:{{{shard}}}:rights"


# --- queue Redis ---------------------------------------------------------------------------------------

QUEUE = "tc:queue"
"""zset (arq's) · ticket `<generation>.<number>` → fair tag · 7 d · enqueue.lua; arq removes"""

BELL = "tc:bell"
"""list · empty strings, at most 1,000: something is in the queue · 60 s · enqueue.lua"""

FAIR = "tc:fair"
"""hash · tenant → its newest fair tag · 7 d · enqueue.lua"""


def queued(tenant: str) -> str:
    """zset · generation that waits → ms at which its place ends · 1 d · admit, start; enqueue renews it"""
    return f"tc:q:{tenant}"


def running(tenant: str) -> str:
    """zset · generation that runs → ms at which its place ends · 1 d · start, stop, enqueue; hold renews it"""
    return f"tc:r:{tenant}"


def parked(tenant: str) -> str:
    """zset · ticket whose turn came when its tenant was at the limit → 0, so in the order of their generations' times ·
    retention, 7 d at least · enqueue, stop"""
    return f"tc:park:{tenant}"


def creations(tenant: str, minute: int | None = None) -> str:
    """int · generations asked for in that minute since the epoch · 120 s · admit

    Without a minute: the base from which the script derives it.
    """
    return f"tc:rate:{tenant}" if minute is None else f"tc:rate:{tenant}:{minute}"


def stored(tenant: str) -> str:
    """hash · hour since the epoch → bytes of requests that will have expired in it; hour and sum: of all of them, as of
    that hour · 32 d · admit; delete and cancel take back"""
    return f"tc:bytes:{tenant}"


SIGNING_KEY = "tc:secret"
"""string · what signs stream tokens where TOKENCAST_SECRET does not · 30 d, renewed by each new one · gateways"""

SHARD_COUNT = "tc:shards"
"""string · how many shards the streams Redis has its data in · 30 d, renewed · workers and gateways"""

EMBEDDED = "tc:embedded"
"""string · says that this server is meant to keep nothing · 30 d · `tokencast dev`"""

WORKERS = "tc:workers"
"""zset · worker id → last seen ms · 1 d · workers"""

MODELS = "tc:models"
"""hash · upstream → JSON list of the models it says it has · 1 d · workers"""

WORKER_HEALTH = "tc:worker-health"
"""string (arq's) · its health record; ours is WORKERS · 1 h · arq"""


def arq_job(ticket: str) -> str:
    """string (arq's) · JSON of the job: its name, generation and tenant, nothing else · retention, 7 d at least ·
    enqueue.lua"""
    return f"arq:job:{ticket}"


def worker(worker_id: str) -> str:
    """hash · slots, running, host, pid, version · 15 s · that worker"""
    return f"tc:w:{worker_id}"
