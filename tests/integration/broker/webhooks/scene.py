"""What the tests of webhooks share."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from broker import Broker
from broker.broker import OPEN_TENANT
from broker.ids import shard_of
from broker.settings.settings import Settings
from broker.store import keys
from broker.webhooks.delivery import WebhookDelivery
from tests.servers.webhook_receiver import SECRET
from tests.support import Writer, in_background, request_body


def settings(url: str, **more: Any) -> Settings:
    given = {"webhook_secret": SECRET, "webhook_allow_private": True, **more}
    return Settings(REDIS_URL=url, **given)  # pyright: ignore[reportCallIssue]


@asynccontextmanager
async def delivering(broker: Broker, *steps: float, **more: Any) -> AsyncGenerator[WebhookDelivery, None]:
    """The deliveries of one process. `steps`: seconds until the next attempt, so short that no test waits for them."""
    times = {name: more.pop(name) for name in ("period", "timeout") if name in more}
    own = settings(broker.store.redis.url, **more)
    delivery = WebhookDelivery(broker.outbox, own, steps=steps or (0.02,), **{"period": 0.02, **times})
    async with in_background(delivery.run()):
        yield delivery


async def announced(
    broker: Broker,
    url: str,
    status: str = "completed",
    *,
    idempotency_key: str | None = None,
    tenant: str = OPEN_TENANT,
    **options: Any,
) -> str:
    """The id of a generation with a webhook that has ended."""
    webhook = {"url": url, **options.pop("webhook", {})}
    body = request_body(tokencast={"webhook": webhook, **options})
    generation = await broker.enqueue(body, idempotency_key=idempotency_key, tenant=tenant)
    writer = await Writer(broker.store.redis, generation.id).claim()
    await writer.append("Hello")
    data = b'{"error":{"message":"no","type":"server_error","code":"upstream_error"}}'
    await (writer.finish() if status == "completed" else writer.finish("failed", data))
    return generation.id


async def entry_due(broker: Broker, gid: str) -> float | None:
    """Score of the outbox's entry, in ms."""
    redis, shard = broker.store.redis, shard_of(gid)
    event, host = await redis.execute("HMGET", keys.webhook_body(shard, gid), "ev", "ho")
    if event is None:
        return None
    box = keys.webhook_outbox(shard, host.decode())
    score = await redis.execute("ZSCORE", box, f"{gid}.{event.decode()}")
    return None if score is None else float(score)


async def make_due(broker: Broker, gid: str) -> None:
    """Let the time pass until the entry's next attempt, or the end of its lease."""
    redis, shard = broker.store.redis, shard_of(gid)
    event, host = await redis.execute("HMGET", keys.webhook_body(shard, gid), "ev", "ho")
    await redis.execute("ZADD", keys.webhook_outbox(shard, host.decode()), "XX", 2, f"{gid}.{event.decode()}")
    await redis.execute("ZADD", keys.webhook_hosts(shard), 2, host)
