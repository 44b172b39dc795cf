"""Area: OpenAI's chat.completions."""

from __future__ import annotations

import json

from tests.contract.recorder import Recorder
from tests.contract.stage import ENDLESS, Stage, cancel_running, ended, last_event_written, named, prompt, running
from tests.support import Gateway, forget_refusals, gather

CHAT = "/v1/chat/completions"
STREAM = {"stream": True}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}


async def record(stage: Stage, rec: Recorder) -> None:
    api = stage.of("chat")
    await _answers(api, rec)
    await _errors(stage, api, rec)
    await _ends(api, rec)
    await _again(stage, api, rec)
    await _refusals(api, rec)
    await cancel_running(api)


async def _answers(api: Gateway, rec: Recorder) -> None:
    for title, directive, more, query in (
        ("whole", "", {}, ""),
        ("whole, two choices", "length=2", {"n": 2}, ""),
        ("whole, tools", "length=0 tools=2", {}, ""),
        ("whole, tools and text", "length=2 tools=1", {}, ""),
        ("whole, reasoning", "length=1 reasoning=2", {}, ""),
        ("whole, refusal", "length=0 refusal=2", {}, ""),
        ("whole, usage is counted", "usage=never", {}, ""),
        ("whole, without a finish_reason", "fault=done-only", {}, ""),
        ("whole, the content filter's end", "finish=content_filter", {}, ""),
        ("stream", "", STREAM, ""),
        ("stream with usage", "", USAGE, ""),
        ("stream with usage that is counted", "usage=never", USAGE, ""),
        ("stream, bare", "", STREAM, "?bare=true"),
        ("stream, bare, with usage", "", USAGE, "?bare=true"),
        ("stream, tools", "length=0 tools=1", STREAM, ""),
        ("stream, two choices", "length=1", {"stream": True, "n": 2}, ""),
        ("stream, line breaks that are none to SSE", "unicode=1 length=8", STREAM, ""),
        ("stream, gabforge", "shape=gabforge", STREAM, ""),
        ("stream, azure", "shape=azure", STREAM, ""),
    ):
        await rec.ask(title, api, "POST", CHAT + query, body=prompt(directive, **more))
    key = {"idempotency-key": "chat-1"}
    await rec.ask("with a key", api, "POST", CHAT, body=prompt(""), headers=key)
    await rec.ask("with a key, again", api, "POST", CHAT, body=prompt(""), headers=key)
    await rec.ask("with a key, again as a stream", api, "POST", CHAT, body=prompt("", **STREAM), headers=key)
    await rec.ask("with a key, another body", api, "POST", CHAT, body=prompt("length=1"), headers=key)


_REFUSALS = ("400", "401", "403", "404", "413", "422", "html", "json-200", "empty")
_UNAVAILABLE = ("429", "500", "503")
_BREAKS = ("truncate", "error-frame", "rst", "bad-json")


async def _errors(stage: Stage, api: Gateway, rec: Recorder) -> None:
    """Those after which the upstream is not called for some time come last."""
    directives = [f"fault={fault}" for fault in _REFUSALS] + [f"fault={fault} at=2" for fault in _BREAKS]
    kinds: tuple[tuple[str, dict[str, bool]], ...] = (("whole", {}), ("stream", STREAM))
    for some in (directives, *([f"fault={fault}"] for fault in _UNAVAILABLE)):
        await gather(
            *(
                rec.ask(f"upstream: {directive}, {kind}", api, "POST", CHAT, body=prompt(directive, **more))
                for directive in some
                for kind, more in kinds
            )
        )
        await forget_refusals(stage.redis.url)


async def _ends(api: Gateway, rec: Recorder) -> None:
    """Ends of a stream that are not caused by the upstream."""
    body = prompt(ENDLESS, **STREAM)
    for title, method, path in (("cancelled", "POST", "/cancel"), ("deleted", "DELETE", "")):
        async with rec.open(f"stream, {title}", api, "POST", CHAT, body=body) as stream:
            gid = stream.headers["x-generation-id"]
            rec.masks.name(gid, title)
            await stream.until("After")
            await api.http.request(method, f"/v1/generations/{gid}{path}")
            await stream.rest()
    gid = await named(rec, api, "cancelled, whole", prompt(ENDLESS, metadata={"whole": "1"}))
    await last_event_written(api, gid)
    await api.http.post(f"/v1/generations/{gid}/cancel")
    await rec.ask("whole, cancelled", api, "GET", f"{CHAT}/{gid}")
    again = {"on_upstream_error": "restart", **STREAM}
    body = prompt("fault=truncate at=2 times=1 label=chat-reset speed=8", **again)
    await rec.ask("stream, started again", api, "POST", CHAT, body=body)
    body = prompt("fault=truncate at=2 times=1 label=chat-whole", on_upstream_error="restart")
    await rec.ask("whole, started again", api, "POST", CHAT, body=body)


async def _again(stage: Stage, api: Gateway, rec: Recorder) -> None:
    gid = await ended(rec, api, "read again")
    attempt, _, last = (await api.get(gid))["cursor"].partition("-")
    for query in (
        "", "?stream=false", "?stream=true", "?stream=true&include_usage=true", "?stream=true&bare=true",
        f"?stream=true&after={attempt}-3", f"?stream=true&starting_after={attempt}-3",
        f"?stream=true&after={attempt}-{last}",
        "?stream=true&after=0-1", f"?stream=true&after={attempt}-99", "?stream=true&after=12-5",
        "?stream=true&after=malformed", "?stream=yes", "?bare=1", "?include_usage=", "?stream=true&stream=true",
    ):  # fmt: skip
        await rec.ask("again", api, "GET", f"{CHAT}/{gid}{query}")
    await rec.ask("again: HEAD", api, "HEAD", f"{CHAT}/{gid}?stream=true")
    partial = await running(rec, api, "partial")
    await rec.ask("again, while it runs", api, "GET", f"{CHAT}/{partial}")
    for name, fault in (
        ("failed, again", "truncate"),
        ("refused, again", "429 retry_after=7"),
        ("broken, again", "error-frame"),
    ):
        gid = await ended(rec, api, name, f"fault={fault} at=1", tokencast={"queue_timeout": 5})
        await forget_refusals(stage.redis.url)
        for query in ("", "?stream=true"):
            await rec.ask("again, failed", api, "GET", f"{CHAT}/{gid}{query}")


async def _refusals(api: Gateway, rec: Recorder) -> None:
    for title, body in (
        ("no messages", {"model": "m"}),
        ("unknown model", {"model": "unheard-of", "messages": [{"role": "user", "content": "x"}]}),
        ("include_usage", prompt("", stream_options={"include_usage": 1})),
    ):
        await rec.ask(title, api, "POST", CHAT, body=body)
    good = json.dumps(prompt("")).encode()
    await rec.ask("a bad flag", api, "POST", f"{CHAT}?bare=1", content=good, headers={})
    await rec.ask("no JSON", api, "POST", CHAT, content=b"{", headers={})
    for method, path in (
        ("GET", CHAT), ("DELETE", f"{CHAT}/nothing"), ("GET", f"{CHAT}/nothing"),
        ("GET", f"{CHAT}/nothing?stream=true"),
        ("POST", "/chat/completions"), ("POST", "/v1/v1/chat/completions"), ("POST", f"{CHAT}/"),
    ):  # fmt: skip
        await rec.ask("elsewhere", api, method, path)
