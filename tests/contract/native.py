"""Area: the native routes except the event streams."""

from __future__ import annotations

import json

from tests.contract.recorder import Recorder
from tests.contract.stage import Stage, cancel_running, ended, named, prompt, running
from tests.support import Gateway, forget_refusals, gather, wait_until

GENERATIONS = "/v1/generations"


async def record(stage: Stage, rec: Recorder) -> None:
    api = stage.of("native")
    await _create(api, rec)
    await _refusals(api, rec)
    await _read(stage, api, rec)
    await _list(api, rec)
    await _end(api, rec)
    await _elsewhere(api, rec)
    await cancel_running(api)


async def _create(api: Gateway, rec: Recorder) -> None:
    body = prompt("", metadata={"order": "17"}, ttl_seconds=600, on_upstream_error="restart", temperature=0.5)
    key = {"idempotency-key": "order-17"}
    made = await rec.ask("create", api, "POST", GENERATIONS, body=body, headers=key)
    gid = made.json["id"]
    rec.masks.name(gid, "first")
    await api.ended(gid)
    await rec.ask("create: the same key and body", api, "POST", GENERATIONS, body=body, headers=key)
    await rec.ask("create: the same key, another body", api, "POST", GENERATIONS, body=prompt("n"), headers=key)
    await rec.ask("get", api, "GET", f"{GENERATIONS}/{gid}")
    await rec.ask("get with the request", api, "GET", f"{GENERATIONS}/{gid}?include=request")
    await rec.ask("get: HEAD", api, "HEAD", f"{GENERATIONS}/{gid}")
    await rec.ask("get: include has another value", api, "GET", f"{GENERATIONS}/{gid}?include=response")
    await rec.ask("get: include twice", api, "GET", f"{GENERATIONS}/{gid}?include=request&include=request")


_MESSAGES = [{"role": "user", "content": "x"}]
_BAD_BODIES = {
    "invalid JSON": b"{",
    "not an object": b"[]",
    "NaN": b'{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
    "invalid UTF-8": b'{"model":"\xff"}',
    "without model": b"{}",
    "empty": b"",
    "too deep": b'{"a":' * 1200 + b"1" + b"}" * 1200,
    "too long": b'{"model":"m","messages":[{"role":"user","content":"' + b"x" * 20_000 + b'"}]}',
}
_BAD_FIELDS = {
    "model is not a string": {"model": 1},
    "model is empty": {"model": ""},
    "unknown model": {"model": "unheard-of"},
    "without messages": {"messages": None},
    "messages are not an array": {"messages": {}},
    "messages are empty": {"messages": []},
    "a message is not an object": {"messages": ["x"]},
    "a message without role": {"messages": [{"content": "x"}]},
    "a message's content": {"messages": [{"role": "user", "content": 1}]},
    "n": {"n": 0},
    "n is not an integer": {"n": "2"},
    "stream": {"stream": 1},
    "stream_options": {"stream_options": []},
    "include_usage": {"stream_options": {"include_usage": 1}},
    "metadata is not an object": {"metadata": []},
    "metadata of numbers": {"metadata": {"a": 1}},
    "metadata: a long value": {"metadata": {"a": "x" * 513}},
    "metadata: many keys": {"metadata": {str(n): "" for n in range(17)}},
    "on_upstream_error": {"on_upstream_error": "retry"},
    "ttl_seconds": {"ttl_seconds": 0},
    "ttl_seconds is not a number": {"ttl_seconds": "600"},
}


async def _refusals(api: Gateway, rec: Recorder) -> None:
    for title, content in _BAD_BODIES.items():
        headers = {"content-type": "application/json"}
        shown = {"show_request": len(content) < 90}
        await rec.ask(f"create: {title}", api, "POST", GENERATIONS, content=content, headers=headers, **shown)
    for title, fields in _BAD_FIELDS.items():
        body = {"model": "m", "messages": _MESSAGES, **fields}
        await rec.ask(f"create: {title}", api, "POST", GENERATIONS, body=body, show_request=len(str(fields)) < 90)
    good = json.dumps(prompt("")).encode()
    for title, headers in (
        ("compressed", [("content-encoding", "gzip")]),
        ("two keys", [("idempotency-key", "one"), ("idempotency-key", "two")]),
        ("a long key", [("idempotency-key", "k" * 256)]),
    ):
        await rec.ask(f"create: {title}", api, "POST", GENERATIONS, content=good, headers=headers, show_request=False)


async def _read(stage: Stage, api: Gateway, rec: Recorder) -> None:
    """Generations of every kind."""
    gids = await gather(
        ended(rec, api, "two choices", "length=2", n=2),
        ended(rec, api, "tools", "length=0 tools=2"),
        ended(rec, api, "reasoning", "reasoning=2"),
        ended(rec, api, "refusal", "refusal=2"),
        ended(rec, api, "usage is counted", "usage=never"),
        ended(rec, api, "without a finish_reason", "fault=done-only"),
        ended(rec, api, "stopped by length", "", max_tokens=2),
        ended(rec, api, "started twice", "fault=truncate at=2 times=1 label=native-reset", on_upstream_error="restart"),
        ended(rec, api, "truncated", "fault=truncate at=2"),
        ended(rec, api, "refused by the upstream", "fault=400"),
        ended(rec, api, "upstream broke", "fault=error-frame at=1"),
    )
    limited = await ended(rec, api, "rate limited", "fault=429 retry_after=7", tokencast={"queue_timeout": 5})
    await forget_refusals(stage.redis.url)
    for gid in (*gids, limited, await running(rec, api, "running")):
        await rec.ask("get", api, "GET", f"{GENERATIONS}/{gid}")


async def _list(api: Gateway, rec: Recorder) -> None:
    await ended(rec, api, "oldest of the list", "")
    await ended(rec, api, "failed of the list", "fault=truncate")
    newest = await ended(rec, api, "newest of the list", "", metadata={"a": "1"})
    await rec.ask("list", api, "GET", f"{GENERATIONS}?limit=3")
    await rec.ask("list: a page", api, "GET", f"{GENERATIONS}?limit=1&after={newest}")
    await rec.ask("list: of a status", api, "GET", f"{GENERATIONS}?status=failed&limit=1")
    await rec.ask("list: of a status without any", api, "GET", f"{GENERATIONS}?status=queued")
    await rec.ask("list: HEAD", api, "HEAD", GENERATIONS)
    for query in ("limit=0", "limit=101", "limit=x", "status=done", "after=nothing", "limit=1&limit=2"):
        await rec.ask(f"list: {query}", api, "GET", f"{GENERATIONS}?{query}")


async def _end(api: Gateway, rec: Recorder) -> None:
    short = await named(rec, api, "whose retention is over", prompt("", ttl_seconds=1))
    gid = await running(rec, api, "to be cancelled")
    await rec.ask("cancel", api, "POST", f"{GENERATIONS}/{gid}/cancel")
    await rec.ask("cancel: again", api, "POST", f"{GENERATIONS}/{gid}/cancel")
    done = await named(rec, api, "to be deleted", prompt(""))
    await api.ended(done)
    await rec.ask("cancel: one that has ended", api, "POST", f"{GENERATIONS}/{done}/cancel")
    await rec.ask("delete", api, "DELETE", f"{GENERATIONS}/{done}")
    for method, path in (
        ("DELETE", ""), ("GET", ""), ("HEAD", ""), ("GET", "?include=request"), ("GET", "/events"), ("POST", "/cancel"),
        ("POST", "/token"),
    ):  # fmt: skip
        await rec.ask("deleted", api, method, f"{GENERATIONS}/{done}{path}")
    await rec.ask("deleted", api, "GET", f"/v1/chat/completions/{done}")

    async def expired() -> bool:
        return (await api.http.get(f"{GENERATIONS}/{short}")).status_code == 410

    await wait_until(expired)
    await rec.ask("expired", api, "GET", f"{GENERATIONS}/{short}")
    await rec.ask("expired", api, "GET", f"{GENERATIONS}/{short}/events")


async def _elsewhere(api: Gateway, rec: Recorder) -> None:
    unknown = f"{GENERATIONS}/gen_{'0' * 10}10{'0' * 22}"
    for method, path in (
        ("GET", unknown),
        ("GET", f"{GENERATIONS}/nothing"),
        ("DELETE", unknown),
        ("POST", f"{unknown}/cancel"),
        ("GET", f"{unknown}/events"),
        ("HEAD", f"{unknown}/events"),
        ("POST", f"{unknown}/token"),
        ("PUT", GENERATIONS),
        ("PATCH", unknown),
        ("GET", f"{unknown}/cancel"),
        ("POST", f"{unknown}/events"),
        ("GET", f"{unknown}/token"),
        ("GET", f"{GENERATIONS}/"),
        ("POST", f"{unknown}/nothing"),
        ("GET", "/v1"),
        ("POST", "/v1/responses"),
        ("GET", "/nowhere"),
    ):
        await rec.ask("elsewhere", api, method, path)
