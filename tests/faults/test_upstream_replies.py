"""What real upstreams send, all the way to the readers: every reply of the simulator's table, and its right outcome."""

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
class Right:
    """The right outcome of a reply. Texts are what is to be found within something else."""

    text: str | None = "Good morning"
    code: str | None = None
    """Of the failure; None for a completed generation, "" for any code."""
    says: str = ""
    """Within the error."""
    reason: str | None = "stop"
    calls: int = 1
    tool_calls: list[Json] = field(default_factory=list[Json])
    message: str = ""
    """Within the merged message."""
    status: int = 200
    """Of the whole chat answer."""
    asked: Json = field(default_factory=dict[str, Any])


def failed(says: str = "", code: str = "", *, text: str = "", status: int = 502, calls: int = 1, **asked: Any) -> Right:
    return Right(text, code, says, None, calls, status=status, asked=asked)


def called(*calls: Json) -> Right:
    return Right("", reason="tool_calls", tool_calls=list(calls))


TRUNCATED = failed("before the completion", "upstream_truncated", text="Good morning")
COMPLETED = Right()
TWO = {"n": 2}

OUTCOMES: dict[str, Right] = {
    "truncated": TRUNCATED,
    "parts-then-text": Right(message="first thought "),
    "parts-first": Right(message="first thought "),
    "parts-of-reasoning": Right(message="thought"),
    "content-number": Right(None),
    "arguments-object": called(LOOKUP),
    "tool-calls-null-then-one": called(LOOKUP),
    "id-emptied": called(LOOKUP),
    "id-nulled": called(LOOKUP),
    "reason-empty-cut": TRUNCATED,
    "reason-null-cut": TRUNCATED,
    "reason-abort": failed("`abort`", text="Good "),
    "reason-error": failed("`error`", text="Good "),
    "reason-error-with-text": failed("`error`", text="Good "),
    "reason-eos": Right(reason="eos"),
    "reset-in-the-middle": failed("broke", "upstream_truncated", text="Good morning"),
    "cut-after-both": Right("Good ", asked=TWO),
    "cut-after-one": failed("broke", "upstream_truncated", text="Good ", **TWO),
    "same-index": called(FIRST, SECOND),
    "same-index-one-delta": called(FIRST, SECOND),
    "same-index-in-pieces": called(FIRST, SECOND),
    "no-index-no-id": called({**FIRST, "id": ...}, {**SECOND, "id": ...}),
    "no-index-own-ids": called(FIRST, SECOND),
    "interleaved-calls": called(FIRST, SECOND),
    "name-repeated": called(LOOKUP),
    "name-split": called(FIRST),
    "details-text": Right(message='"text": "first thought"'),
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
    "options-422-list": Right(calls=2),
    "options-400-list": Right(calls=2),
    "options-422-nested": Right(calls=2),
    "options-422-message": Right(calls=2),
    "list-400": failed("the context is too long", status=400),
    "list-429": failed("the quota is used up", "upstream_rate_limited", status=429),
    "region-403": failed("not available in your region", status=403),
    "fields-422": failed("body.top_p: must be below 1", status=422),
    "text-400": failed("the prompt is too long", status=400),
    "bom-within": failed("invalid chunk", "bad_upstream_response", text="Good "),
    "type-none": failed("application/octet-stream", "bad_upstream_response"),
    "deep": failed("nested deeper", "bad_upstream_response", text="Good "),
    "digits": failed("invalid chunk", "bad_upstream_response", text="Good "),
    "image": Right("", message="QUJDQUJD"),
    "audio": Right("", message="QUJD"),
}
"""By the reply's name. Those that are not here are completed, with a good morning."""


@pytest.fixture(scope="module")
async def replies(redis: EmbeddedRedis, sim: str, api: Gateway) -> AsyncGenerator[Service, None]:
    """A worker that waits for nothing."""
    async with worker(redis.url, sim, TOKENCAST_RETRY_BUDGET="0", TOKENCAST_IDLE_TIMEOUT="20") as started:
        yield started


def test_every_outcome_is_of_a_reply() -> None:
    assert OUTCOMES.keys() <= REPLIES.keys()


@pytest.mark.parametrize("name", REPLIES)
async def test_a_reply_has_its_right_outcome(api: Gateway, sim: str, replies: Service, name: str) -> None:
    """Once called, however odd; every read of it works."""
    right = OUTCOMES.get(name, COMPLETED)
    body = request_body(f"[[sim reply={name} label={name}]]", model="sim", **right.asked)
    generation = await api.create(body)
    frames = await api.events(generation["id"])
    snapshot = await api.http.get(f"/v1/generations/{generation['id']}")
    chat = await api.http.get(f"/v1/chat/completions/{generation['id']}")
    stream = [frame async for frame in api.stream("GET", f"/v1/chat/completions/{generation['id']}?stream=true")]

    assert snapshot.status_code == 200
    stored = snapshot.json()
    ending = frames[-1]
    assert (ending.event, stored["status"]) == (("completed",) * 2 if right.code is None else ("failed",) * 2)
    assert stored["attempt"] == 1
    assert len(await upstream_calls(sim, name)) == right.calls
    assert chat.status_code == right.status, chat.text
    if right.text is not None:
        assert stored["text"] == right.text
    for frame in (*frames, *stream):
        if frame.event in (None, "chunk") and frame.data and frame.data != "[DONE]" and "error" not in frame.json:
            assert isinstance(frame.json["choices"], list)
    if right.code is None:
        assert_completed(right, stored, chat.json())
        assert stream[-1].data == "[DONE]"
    else:
        error = stored["error"]
        assert right.says in error["message"]
        assert right.code in ("", error["code"])
        assert stream[-1].json["error"] == error
        assert not stored["text"] or texts(frames) == stored["text"]


def assert_completed(right: Right, stored: Json, chat: Json) -> None:
    choice, message = stored["choices"][0], chat["choices"][0]["message"]
    assert chat["choices"][0]["finish_reason"] == right.reason
    assert choice["finish_reason"] in (right.reason, None)
    assert choice["message"]["role"] == message["role"] == "assistant"
    assert right.message in json.dumps(choice["message"])
    assert bool(message.get("tool_calls")) == ("tool_calls" in message) == bool(right.tool_calls)
    for made, wanted in zip(message.get("tool_calls", []), right.tool_calls, strict=True):
        function = made["function"]
        assert (function["name"], json.loads(function["arguments"])) == (wanted["name"], wanted["arguments"])
        assert wanted["id"] in (..., made["id"])


async def test_no_reply_costs_a_second_call_where_a_restart_is_asked_for(
    api: Gateway, sim: str, replies: Service
) -> None:
    """What is complete is complete, and what another call would meet again is not paid for again."""
    names = ["reset-after-stop", "cut-after-stop", "held-after-stop", "error-after-stop", "noise-after-stop"]

    async def run(name: str) -> tuple[str, int]:
        label = f"restart-{name}"
        body = request_body(f"[[sim reply={name} label={label}]]", model="sim", on_upstream_error="restart")
        frames = await api.events((await api.create(body))["id"])
        return str(frames[-1].event), len(await upstream_calls(sim, label))

    assert await gather(*map(run, names)) == [("completed", 1)] * len(names)


async def test_the_usage_that_comes_late_is_counted(api: Gateway, sim: str, replies: Service) -> None:
    for name in (
        "usage-a-second-later",
        "usage-choices-null",
        "usage-no-choices",
        "usage-in-the-choice",
        "message-json",
    ):
        generation = await api.create(request_body(f"[[sim reply={name}]]", model="sim"))
        assert (await api.ended(generation["id"]))["usage"]["total_tokens"] == 5


async def test_a_huge_usage_is_cut_to_its_sums(api: Gateway, sim: str, replies: Service) -> None:
    generation = await api.create(request_body("[[sim reply=usage-huge]]", model="sim"))
    assert (await api.ended(generation["id"]))["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
    }


async def test_a_chat_reader_that_asked_for_no_usage_gets_none(api: Gateway, sim: str, replies: Service) -> None:
    for name in ("usage-choices-null", "usage-no-choices", "counted"):
        generation = await api.create(request_body(f"[[sim reply={name}]]", model="sim"))
        await api.ended(generation["id"])
        path = f"/v1/chat/completions/{generation['id']}?stream=true"
        frames = [frame async for frame in api.stream("GET", path)]
        assert all(frame.json["choices"] for frame in frames if frame.data != "[DONE]")


async def test_what_is_not_text_is_shown_as_it_comes(api: Gateway, sim: str, replies: Service) -> None:
    """The reply is silent for more than a second before its end."""
    generation = await api.create(request_body("[[sim reply=audio label=heard]]", model="sim"))
    async for frame in api.follow(generation["id"]):
        if frame.event == "chunk":
            assert (await api.get(generation["id"]))["status"] == "in_progress"
            break


async def test_no_cookie_of_one_answer_goes_with_the_next_call(api: Gateway, sim: str, replies: Service) -> None:
    for _ in range(2):
        await api.ended((await api.create(request_body("[[sim reply=cookies label=c]]", model="sim")))["id"])
    assert [call["headers"]["cookie"] for call in await upstream_calls(sim, "c")] == [None, None]
