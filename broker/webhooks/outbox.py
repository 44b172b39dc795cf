"""The outbox of webhooks in the logs' Redis. Scripts that end a generation write it (store/lua/webhook.lua); here its
entries are taken, recorded and scheduled. Takes are leases: an entry whose process dies is due again."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec

from broker.ids import SHARDS, shard_of
from broker.records import Delivery, DeliveryError, DeliveryList
from broker.redis.client import Redis, Script
from broker.store import keys
from broker.store.commands import DUE

TAKE, DONE = Script("store", "webhook_take"), Script("store", "webhook_done")
REDELIVER = Script("store", "webhook_redeliver")

LEASE = 30.0
"""Seconds for which a taken entry is not taken again: longer than an attempt, with the time to record it."""
HOSTS_AT_ONCE = 32  # per shard
KEPT_ATTEMPTS = 50
_COUNTED_HOSTS = 1000  # per shard
_EPOCH = datetime.fromtimestamp(0, UTC)


class Host(NamedTuple):
    """The entries of one host in one shard."""

    shard: str
    name: str


@dataclass(frozen=True, slots=True)
class Entry:
    """An announcement that was taken for delivery. `tries`: number of earlier attempts."""

    host: Host
    gid: str
    event: str
    url: str
    body: bytes
    tries: int
    tenant: str

    @property
    def message_id(self) -> str:
        """The same at each repetition, also if Redis lost the ending and it was written again."""
        return message_id(self.gid, self.event)


class Attempt(msgspec.Struct, frozen=True):
    """One attempt, as the outbox keeps it. `at`: unix seconds."""

    at: float
    seconds: float
    status: int | None
    error: DeliveryError | None


def message_id(gid: str, event: str) -> str:
    """Return the `webhook-id` of an announcement."""
    return f"msg_{gid}_{event}"


def body_of(event: str, ended_ms: int, summary: bytes, metadata: bytes, usage: bytes) -> bytes:
    """Return the body of a webhook. `metadata`, `usage`: those that the summary leaves out because they are long, or
    empty. The same at each repetition."""
    long = {name: msgspec.Raw(text) for name, text in (("metadata", metadata), ("usage", usage)) if text}
    data = {**msgspec.json.decode(summary), **long} if long else msgspec.Raw(summary)
    at = (_EPOCH + timedelta(milliseconds=ended_ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return msgspec.json.encode({"type": f"generation.{event}", "timestamp": at, "data": data})


class Outbox:
    """The outbox of all shards."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis

    @property
    def groups(self) -> Sequence[str]:
        """The groups of shards that are on a server of their own."""
        return self.redis.topology.groups

    async def due_hosts(self, group: str) -> list[Host]:
        """Return hosts with a due entry, from a group of shards."""
        shards = [shard for shard in SHARDS if self.redis.topology.group(shard) == group]
        replies = await self.redis.run_many(
            DUE, [((keys.webhook_hosts(shard),), (HOSTS_AT_ONCE, "")) for shard in shards]
        )
        return [Host(shard, name.decode()) for shard, (_, names) in zip(shards, replies, strict=True) for name in names]

    async def take(self, host: Host, count: int, closed_for: float | None) -> list[Entry]:
        """Take up to `count` due entries of a host. `closed_for`: seconds for which the host is not called; then only
        those that are redelivered by hand."""
        arguments = [host.name, count, int(LEASE * 1000), _milliseconds(closed_for)]
        rows = await self.redis.run(TAKE, _keys(host.shard), arguments)
        return [_entry(host, row) for row in rows]

    async def record(self, entry: Entry, attempt: Attempt, retry_in: float | None, closed_for: float | None) -> str:
        """Record an attempt. `retry_in`: seconds until the next one; None: there is none. Return OK, GONE (the
        generation was deleted) or OVER (the day of the retries is over)."""
        arguments = [
            *(entry.host.name, entry.gid, entry.event, msgspec.json.encode(attempt)),
            *(_milliseconds(retry_in), _milliseconds(closed_for), KEPT_ATTEMPTS),
        ]
        return (await self.redis.run(DONE, _keys(entry.host.shard), arguments)).decode()

    async def redeliver(self, gid: str, number: int) -> bool:
        """Schedule the announcement again, at once; False if it has no attempt of this number."""
        return await self.redis.run(REDELIVER, _keys(shard_of(gid)), [gid, number]) == b"OK"

    async def deliveries(self, gid: str) -> DeliveryList:
        """Return the attempts of a generation's announcement."""
        shard = shard_of(gid)
        event, host, log = await self.redis.execute("HMGET", keys.webhook_body(shard, gid), "ev", "ho", "log")
        if event is None:
            return DeliveryList([], None)
        name = event.decode()
        due = await self.redis.execute("ZSCORE", keys.webhook_outbox(shard, host.decode()), f"{gid}.{name}")
        return DeliveryList(
            [_delivery(message_id(gid, name), name, line) for line in log.decode().splitlines()],
            None if due is None else _due_at(float(due)),
        )

    async def waiting(self) -> int:
        """Return the number of announcements that have not been delivered."""
        hosts = await self.redis.pipeline(
            [("ZRANGE", keys.webhook_hosts(shard), 0, _COUNTED_HOSTS - 1) for shard in SHARDS]
        )
        boxes = [
            keys.webhook_outbox(shard, name.decode())
            for shard, names in zip(SHARDS, hosts, strict=True)
            for name in names
        ]
        return sum(await self.redis.pipeline([("ZCARD", box) for box in boxes]))


def _due_at(score: float) -> float:
    """Return the time of the next attempt; one that is redelivered by hand is due now."""
    return time.time() if score <= 1 else score / 1000


def _keys(shard: str) -> list[str]:
    return [keys.webhook_hosts(shard), keys.webhook_body(shard)]


def _milliseconds(seconds: float | None) -> int | str:
    return "" if seconds is None else math.ceil(seconds * 1000)


def _entry(host: Host, row: list[bytes]) -> Entry:
    gid, event, url, at, summary, metadata, usage, tries, tenant = row
    body = body_of(event.decode(), int(at), summary, metadata, usage)
    return Entry(host, gid.decode(), event.decode(), url.decode(), body, int(tries), tenant.decode())


def _delivery(webhook_id: str, event: str, line: str) -> Delivery:
    number, _, text = line.partition(" ")
    attempt = msgspec.json.decode(text, type=Attempt)
    return Delivery(
        int(number), webhook_id, f"generation.{event}", attempt.at, attempt.seconds, attempt.status, attempt.error
    )
