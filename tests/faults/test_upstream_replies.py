"""Replies of real upstreams, from end to end: every reply of the simulator's table and its expected outcome."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import pytest

from broker.dev.embedded_redis import EmbeddedRedis
from tests.support import Gateway, Service, gather, request_body, texts, upstream_calls, worker
from worker.simulator.replies import REPLIES

Json = dict[str, Any]
LOOKUP = {"id": "call_1", "name": "lookup", "arguments": {"city": "Oslo"}}
FIRST, SECOND = (
    {"id": f"call_{n}", "name": name, "arguments": {key: n}}
    for n, name, key in [(1, "lookup", "a"), (2, "weather", "b")]
)


@dataclass(frozen=True)
class Expected:
    """The expected outcome of a reply. Texts are substrings of the actual values."""

    text: str | None = "Good morning"
    code: str | None = None
    """The failure's code; None for a completed generation, "" for any code."""
    message_part: str = ""
    """Part of the error message."""
    reason: str | None = "stop"
    calls: int | None = 1
    """None: at least one, because it is called again until its waiting ends."""
    tool_calls: list[Json] = field(default_factory=list[Json])
    message: str = ""
    """Part of the merged message."""
    status: int = 200
    """The status of the chat completion without streaming."""
    options: Json = field(default_factory=dict[str, Any])


def failed(
    message_part: str = "", code: str = "", *, text: str = "", status: int = 502, calls: int | None = 1, **options: Any
) -> Expected:
    return Expected(text, code, message_part, None, calls, status=status, options=options)


def called(*calls: Json) -> Expected:
    return Expected("", reason="tool_calls", tool_calls=list(calls))


BRIEFLY = {"tokencast": {"queue_timeout": 1}}
TRUNCATED = failed("before the completion", "upstream_truncated", text="Good morning")
COMPLETED = Expected()
TWO = {"n": 2}

OUTCOMES: dict[str, Expected] = {
    "truncated": TRUNCATED,
    "parts-then-text": Expected(message="first thought "),
    "parts-first": Expected(message="first thought "),
    "parts-of-reasoning": Expected(message="thought"),
    "content-number": Expected(None),
    "arguments-object": called(LOOKUP),
    "tool-calls-null-then-one": called(LOOKUP),
    "id-emptied": called(LOOKUP),
    "id-nulled": called(LOOKUP),
    "reason-empty-cut": TRUNCATED,
    "reason-null-cut": TRUNCATED,
    "reason-abort": failed("`abort`", text="Good "),
    "reason-error": failed("`error`", text="Good "),
    "reason-error-with-text": failed("`error`", text="Good "),
    "reason-eos": Expected(reason="eos"),
    "reset-in-the-middle": failed("broke", "upstream_truncated", text="Good morning"),
    "cut-after-both": Expected("Good ", options=TWO),
    "cut-after-one": failed("broke", "upstream_truncated", text="Good ", **TWO),
    "same-index": called(FIRST, SECOND),
    "same-index-one-delta": called(FIRST, SECOND),
    "same-index-in-pieces": called(FIRST, SECOND),
    "no-index-no-id": called({**FIRST, "id": ...}, {**SECOND, "id": ...}),
    "no-index-own-ids": called(FIRST, SECOND),
    "interleaved-calls": called(FIRST, SECOND),
    "name-repeated": called(LOOKUP),
    "name-split": called(FIRST),
    "details-text": Expected(message='"text": "first thought"'),
    "error-event": failed("top_p is out of range", "OutOfRange"),
    "error-event-text": failed("the model is gone", text="Good "),
    "error-event-null": failed(text="Good "),
    "error-unknown": failed("not enough quota", text="Good "),
    "error-named": failed("too many tokens", text="Good "),
    "error-header": failed("not allowed", text="Good "),
    "error-code-next-to-choices": failed("not allowed", text="Good "),
    "error-json-cut": failed("used up"),
    "message-json-half": failed(),
    "reason-unfinished-cut": TRUNCATED,
    "reason-overloaded": failed("insufficient_system_resource", text="Good "),
    "usage-alone": failed("was empty", "bad_upstream_response"),
    "usage-alone-cut": failed(),
    "error-status-object": failed("the balance is used up"),
    "error-bare": failed("the quota is used up", "RESOURCE_EXHAUSTED", text="Good "),
    "error-bare-done": failed("the model fell over", text="Good "),
    "error-object": failed("the prompt is too long"),
    "error-detail": failed("the worker was restarted", text="Good "),
    "error-list": failed("overloaded", "UNAVAILABLE", text="Good "),
    "error-errors": failed("no capacity", text="Good "),
    "error-text": failed("the model fell over", text="Good "),
    "error-in-choice": failed("provider gone", text="Good "),
    "error-json": failed("the quota is used up", "quota"),
    "options-422-list": Expected(calls=2),
    "options-400-list": Expected(calls=2),
    "options-422-nested": Expected(calls=2),
    "options-422-message": Expected(calls=2),
    "list-400": failed("the context is too long", status=400),
    "list-429": failed("the quota is used up", "upstream_rate_limited", status=429, calls=None, **BRIEFLY),
    "region-403": failed("not available in your region", status=403),
    "fields-422": failed("body.top_p: must be below 1", status=422),
    "text-400": failed("the prompt is too long", status=400),
    "bom-within": failed("invalid chunk", "bad_upstream_response", text="Good "),
    "type-none": failed("application/octet-stream", "bad_upstream_response"),
    "deep": failed("nested deeper", "bad_upstream_response", text="Good "),
    "digits": failed("invalid chunk", "bad_upstream_response", text="Good "),
    "image": Expected("", message="QUJDQUJD"),
    "audio": Expected("", message="QUJD"),
}
"""By the reply's name. Replies that are not listed complete with "Good morning"."""


@pytest.fixture(scope="module")
async def replies(redis: EmbeddedRedis, sim: str, api: Gateway) -> AsyncGenerator[Service, None]:
    async with worker(redis.url, sim, TOKENCAST_IDLE_TIMEOUT="20") as started:
        yield started


def test_every_outcome_belongs_to_a_reply() -> None:
    assert OUTCOMES.keys() <= REPLIES.keys()


@pytest.mark.parametrize("name", REPLIES)
async def test_a_reply_has_its_expected_outcome(api: Gateway, sim: str, replies: Service, name: str) -> None:
    """Even an unusual reply is one upstream call, and every way to read the generation works."""
    expected = OUTCOMES.get(name, COMPLETED)
    body = request_body(f"[[sim reply={name} label={name}]]", model="sim", **expected.options)
    generation = await api.create(body)
    frames = await api.events(generation["id"])
    snapshot = await api.http.get(f"/v1/generations/{generation['id']}")
    chat = await api.http.get(f"/v1/chat/completions/{generation['id']}")
    stream = [frame async for frame in api.stream("GET", f"/v1/chat/completions/{generation['id']}?stream=true")]

    assert snapshot.status_code == 200
    stored = snapshot.json()
    ending = frames[-1]
    assert (ending.event, stored["status"]) == (("completed",) * 2 if expected.code is None else ("failed",) * 2)
    assert stored["attempt"] == 1 or expected.calls is None  # it may have ended while it waited for the next call
    assert len(await upstream_calls(sim, name)) in ((expected.calls,) if expected.calls else range(1, 100))
    assert chat.status_code == expected.status, chat.text
    if expected.text is not None:
        assert stored["text"] == expected.text
    for frame in (*frames, *stream):
        if frame.event in (None, "chunk") and frame.data and frame.data != "[DONE]" and "error" not in frame.json:
            assert isinstance(frame.json["choices"], list)
    if expected.code is None:
        assert_completed(expected, stored, chat.json())
        assert stream[-1].data == "[DONE]"
    else:
        error = stored["error"]
        assert expected.message_part in error["message"]
        assert expected.code in ("", error["code"])
        assert stream[-1].json["error"] == error
        assert not stored["text"] or texts(frames) == stored["text"]


def assert_completed(expected: Expected, stored: Json, chat: Json) -> None:
    choice, message = stored["choices"][0], chat["choices"][0]["message"]
    assert chat["choices"][0]["finish_reason"] == expected.reason
    assert choice["finish_reason"] in (expected.reason, None)
    assert choice["message"]["role"] == message["role"] == "assistant"
    assert expected.message in json.dumps(choice["message"])
    assert bool(message.get("tool_calls")) == ("tool_calls" in message) == bool(expected.tool_calls)
    for made, wanted in zip(message.get("tool_calls", []), expected.tool_calls, strict=True):
        function = made["function"]
        assert (function["name"], json.loads(function["arguments"])) == (wanted["name"], wanted["arguments"])
        assert wanted["id"] in (..., made["id"])


async def test_no_reply_costs_a_second_call_with_restart_on_error(api: Gateway, sim: str, replies: Service) -> None:
    """A complete reply is complete, and a call that would meet the same error is not repeated."""
    names = ["reset-after-stop", "cut-after-stop", "held-after-stop", "error-after-stop", "noise-after-stop"]

    async def run(name: str) -> tuple[str, int]:
        label = f"restart-{name}"
        body = request_body(f"[[sim reply={name} label={label}]]", model="sim", on_upstream_error="restart")
        frames = await api.events((await api.create(body))["id"])
        return str(frames[-1].event), len(await upstream_calls(sim, label))

    assert await gather(*map(run, names)) == [("completed", 1)] * len(names)


async def test_a_late_usage_is_counted(api: Gateway, sim: str, replies: Service) -> None:
    for name in (
        "usage-a-second-later",
        "usage-choices-null",
        "usage-no-choices",
        "usage-in-the-choice",
        "message-json",
    ):
        generation = await api.create(request_body(f"[[sim reply={name}]]", model="sim"))
        assert (await api.ended(generation["id"]))["usage"]["total_tokens"] == 5


async def test_a_huge_usage_is_reduced_to_its_totals(api: Gateway, sim: str, replies: Service) -> None:
    generation = await api.create(request_body("[[sim reply=usage-huge]]", model="sim"))
    assert (await api.ended(generation["id"]))["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
    }


async def test_a_chat_stream_without_include_usage_contains_none(api: Gateway, sim: str, replies: Service) -> None:
    for name in ("usage-choices-null", "usage-no-choices", "counted"):
        generation = await api.create(request_body(f"[[sim reply={name}]]", model="sim"))
        await api.ended(generation["id"])
        path = f"/v1/chat/completions/{generation['id']}?stream=true"
        frames = [frame async for frame in api.stream("GET", path)]
        assert all(frame.json["choices"] for frame in frames if frame.data != "[DONE]")


async def test_output_other_than_text_is_delivered_immediately(api: Gateway, sim: str, replies: Service) -> None:
    """The reply is silent for more than a second before its end."""
    generation = await api.create(request_body("[[sim reply=audio label=heard]]", model="sim"))
    async for frame in api.follow(generation["id"]):
        if frame.event == "chunk":
            assert (await api.get(generation["id"]))["status"] == "in_progress"
            break


async def test_cookies_of_a_response_are_not_sent_with_the_next_call(api: Gateway, sim: str, replies: Service) -> None:
    for _ in range(2):
        await api.ended((await api.create(request_body("[[sim reply=cookies label=c]]", model="sim")))["id"])
    assert [call["headers"]["cookie"] for call in await upstream_calls(sim, "c")] == [None, None]
