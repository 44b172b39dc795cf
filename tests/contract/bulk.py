"""Area: batches, retries, groups and filters."""

from __future__ import annotations

import json

from tests.contract.recorder import Recorder
from tests.contract.stage import ENDLESS, Stage, ended, last_event_written, prompt
from tests.support import Gateway

GENERATIONS = "/v1/generations"
BATCH, RETRY, GROUP = f"{GENERATIONS}/batch", f"{GENERATIONS}/retry", "/v1/groups/a%2Fb"
CANCEL, DELETE = f"{GENERATIONS}/cancel", f"{GENERATIONS}/delete"
LATER = {"tokencast": {"delay_seconds": 3600}}
LINES = {"content-type": "application/x-ndjson"}


async def record(stage: Stage, rec: Recorder) -> None:
    api = stage.of("bulk")
    await _batch(api, rec)
    await _filters(api, rec)
    await _retry(api, rec)
    await _endings(api, rec)
    await _refusals(api, rec)


async def _batch(api: Gateway, rec: Recorder) -> None:
    bodies = [prompt(ENDLESS, metadata={"n": "1"}, tokencast={"group": "a/b", "priority": 1}), {"model": "sim"}]
    key = {"idempotency-key": "batch"}
    made = await rec.ask("batch", api, "POST", BATCH, body={"generations": bodies}, headers=key)
    rec.masks.name(made.json["data"][0]["id"], "of the batch")
    again = "\n".join(json.dumps(body) for body in [prompt("n"), bodies[1], "x" * 20_000])
    headers = {**LINES, **key}
    await rec.ask("batch of lines", api, "POST", BATCH, content=again.encode(), headers=headers, show_request=False)
    await last_event_written(api, made.json["data"][0]["id"])
    await rec.ask("group: unknown", api, "GET", "/v1/groups/unknown")
    await rec.ask("group: cancel", api, "POST", f"{GROUP}/cancel")
    await rec.ask("group", api, "GET", GROUP)
    await rec.ask("group: cancel an unknown one", api, "POST", "/v1/groups/unknown/cancel")


async def _filters(api: Gateway, rec: Recorder) -> None:
    await ended(rec, api, "failed", "fault=truncate at=2", metadata={"n": "2"})
    for query in (
        "group=a/b",
        "model=sim&status=failed,cancelled&limit=1",
        "code=upstream_truncated",
        "metadata[n]=2&metadata[m]=1",
        "search=N=2&upstream=default",
        "created_before=2026-01-01",
        "since=2020-01-01T00:00:00Z&model=unheard-of",
        "since=soon",
        "until=1&created_before=1",
        "unheard-of=1",
    ):
        await rec.ask(f"list: {query}", api, "GET", f"{GENERATIONS}?{query}")


async def _retry(api: Gateway, rec: Recorder) -> None:
    old = await ended(rec, api, "to be retried", "", metadata={"n": "3"}, ttl_seconds=600)
    key = {"idempotency-key": "retry"}
    new = await rec.ask("retry", api, "POST", f"{GENERATIONS}/{old}/retry", headers=key)
    rec.masks.name(new.json["id"], "retry")
    await api.ended(new.json["id"])
    await rec.ask("retry: the same key", api, "POST", f"{GENERATIONS}/{old}/retry", headers=key)
    await rec.ask("retry: a dry run", api, "POST", RETRY, body={"code": "upstream_truncated", "dry_run": True})
    await rec.ask("retry: all", api, "POST", RETRY, body={"status": ["failed"], "limit": 1})


async def _endings(api: Gateway, rec: Recorder) -> None:
    waiting = await rec.ask("to be cancelled", api, "POST", GENERATIONS, body=prompt("", metadata={"n": "4"}, **LATER))
    rec.masks.name(waiting.json["id"], "to be cancelled")
    body = {"metadata": {"n": "4"}}
    await rec.ask("cancel all: a dry run", api, "POST", CANCEL, body={**body, "dry_run": True})
    await rec.ask("cancel all", api, "POST", CANCEL, body=body)
    await rec.ask("delete all", api, "POST", DELETE, body={**body, "status": ["cancelled"]})
    await rec.ask("delete all: none", api, "POST", DELETE, body={**body, "status": "cancelled"})
    for path, refused in ((CANCEL, {"status": "failed"}), (DELETE, {}), (DELETE, {"status": "none"})):
        await rec.ask("cancel or delete all: refused", api, "POST", path, body=refused)


async def _refusals(api: Gateway, rec: Recorder) -> None:
    for body in ({}, {"generations": []}, {"generations": [1]}, {"generations": [], "group": "g"}):
        await rec.ask("batch: refused", api, "POST", BATCH, body=body)
    for body in ({"status": "queued"}, {"limit": 0}, {"since": "soon"}, {"unheard-of": 1}):
        await rec.ask("retry: refused", api, "POST", RETRY, body=body)
    for method, path in (("GET", BATCH), ("GET", RETRY), ("POST", GROUP), ("POST", f"{GENERATIONS}/nothing/retry")):
        await rec.ask("elsewhere", api, method, path)
