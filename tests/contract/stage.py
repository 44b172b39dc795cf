"""The processes of a recording, and helpers that create generations."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2

from tests.conftest import checked_redis
from tests.contract.recorder import Recorder
from tests.support import DEADLINE, Gateway, gateway, gather, upstream_sim, wait_until, worker

ORIGIN = "https://app.example"
TENANTS = ("native", "events", "chat", "several", "access", "other", "limited", "edge", "command", "storage", "bulk")
KEYS = {tenant: f"key-of-{tenant}" for tenant in TENANTS}
API_KEYS = ",".join(f"{tenant}:{hashlib.sha256(key.encode()).hexdigest()}" for tenant, key in KEYS.items())
RUNNING = 8
"""Limit of concurrent generations per tenant."""
UNLIMITED = {
    "TOKENCAST_API_KEYS": API_KEYS,
    "TOKENCAST_TENANT_PER_MINUTE": "0",
    "TOKENCAST_MAX_BODY": "20000",
    "TOKENCAST_SECRET": "a secret of sixteen",
}


@dataclass(frozen=True)
class Stage:
    """The processes of one recording."""

    redis: Any
    open: Gateway
    """A gateway without keys."""
    keyed: Gateway
    limited: Gateway
    """With keys; limits: one queued generation per tenant, one subscriber per generation."""
    edge: Gateway
    """With keys; limits: three connections, one creation per minute. A heartbeat every 0.3 s."""
    worker: Gateway
    """The worker's HTTP server."""

    clients: list[httpx2.AsyncClient] = field(default_factory=list)

    def of(self, tenant: str, *, at: Gateway | None = None) -> Gateway:
        """Return a gateway client with the tenant's key."""
        api = at or self.keyed
        headers = {"authorization": f"Bearer {KEYS[tenant]}"}
        http = httpx2.AsyncClient(base_url=api.url, timeout=DEADLINE, headers=headers)
        self.clients.append(http)
        return replace(api, http=http)


@asynccontextmanager
async def stage() -> AsyncGenerator[Stage, None]:
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(checked_redis())
        sim = await stack.enter_async_context(upstream_sim())
        url, port = redis.url, free_port()
        settings = {
            "TOKENCAST_METRICS_PORT": str(port),
            "TOKENCAST_TENANT_RUNNING": str(RUNNING),
            "TOKENCAST_WORKER_DRAIN": "0",
        }
        few = {**UNLIMITED, "TOKENCAST_TENANT_QUEUED": "1", "TOKENCAST_GENERATION_SUBSCRIBERS": "1"}
        edge = {
            **UNLIMITED,
            "TOKENCAST_TENANT_PER_MINUTE": "1",
            "TOKENCAST_MAX_CONNECTIONS": "3",
            "TOKENCAST_HEARTBEAT": "0.3",
            "TOKENCAST_DRAIN": "25",
        }
        parts = (
            gateway(url, TOKENCAST_CORS_ORIGINS=ORIGIN, TOKENCAST_ALLOWED_HOSTS="tokencast.example"),
            gateway(url, **UNLIMITED, TOKENCAST_RETRY_BUDGET="3"),
            gateway(url, **few),
            gateway(url, **edge),
            worker(url, sim, **settings),
        )
        *gateways, process = await gather(*map(stack.enter_async_context, parts))
        base = f"http://127.0.0.1:{port}"
        http = await stack.enter_async_context(httpx2.AsyncClient(base_url=base))
        staged = Stage(redis, *gateways, worker=Gateway(base, http, process))
        try:
            yield staged
        finally:
            for client in staged.clients:
                await client.aclose()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def prompt(directive: str, **more: Any) -> dict[str, Any]:
    """Return a request body for the simulated upstream, whose reply depends only on the directive."""
    content = f"Say it. [[sim speed=0 length=4 seed=7 {directive}]]"
    return {"model": "sim", "messages": [{"role": "user", "content": content}], **more}


ENDLESS = "fault=stall at=2"
"""Directive: two chunks of content, then silence."""
LAST_SEQ = 3
"""Sequence number of the last event of an ENDLESS generation: started 0, role 1, content 2 and 3."""


async def running(rec: Recorder, api: Gateway, name: str, **more: Any) -> str:
    """Create a generation that keeps running, and wait for its last event."""
    gid = await named(rec, api, name, prompt(ENDLESS, **more))
    await last_event_written(api, gid)
    return gid


async def last_event_written(api: Gateway, gid: str) -> None:
    async def look() -> bool:
        return (await api.get(gid))["cursor"].endswith(f"-{LAST_SEQ}")

    await wait_until(look)


async def cancel_running(api: Gateway) -> None:
    """Cancel the tenant's running generations. After a refusal, an upstream is called again when fewer run."""
    running = (await api.http.get("/v1/generations?status=in_progress&limit=100")).json()["data"]
    for generation in running:
        await api.http.post(f"/v1/generations/{generation['id']}/cancel")


async def named(rec: Recorder, api: Gateway, name: str, body: dict[str, Any]) -> str:
    gid: str = (await api.create(body))["id"]
    rec.masks.name(gid, name)
    return gid


async def ended(rec: Recorder, api: Gateway, name: str, directive: str = "", **more: Any) -> str:
    """Create a generation and wait for its end."""
    gid = await named(rec, api, name, prompt(directive, **more))
    await api.ended(gid)
    return gid
