"""When a text can be continued, and with which request."""

from __future__ import annotations

from typing import Any

import pytest

from worker.continuation.request import continuable_text, continued_body, has_all_tokens, sent_text

USER = {"role": "user", "content": "Say something."}


def choice(**message: Any) -> dict[str, Any]:
    return {"index": 0, "message": {"role": "assistant", "content": "Good ", **message}, "finish_reason": None}


def test_plain_text_can_be_continued() -> None:
    thought = choice(reasoning_content="Let me think.", refusal=None)
    for body in ({}, {"n": 1, "tools": [{}], "response_format": {"type": "text"}, "logprobs": False, "seed": 7}):
        assert continuable_text(body, [thought]) == "Good "


@pytest.mark.parametrize(
    ("body", "choices"),
    [
        ({}, []),
        ({}, [choice(content=None, reasoning_content="Let me")]),
        ({}, [choice(content="")]),
        ({}, [choice(content=[{"type": "text", "text": "Good "}])]),
        ({}, [choice(tool_calls=[{"id": "call_1"}])]),
        ({}, [choice(refusal="I cannot")]),
        ({}, [choice(content="half a pair: \ud83c")]),
        ({"n": 2}, [choice()]),
        ({}, [choice(), {**choice(), "index": 1}]),
        ({"response_format": {"type": "json_object"}}, [choice()]),
        ({"logprobs": True}, [choice()]),
        ({"guided_regex": "[a-z]+"}, [choice()]),
    ],
)
def test_what_cannot_be_continued(body: dict[str, Any], choices: list[dict[str, Any]]) -> None:
    assert continuable_text(body, choices) is None


def test_each_way_to_ask() -> None:
    body = {"model": "m", "messages": [USER], "temperature": 0.5}
    assistant = {"role": "assistant", "content": "Good "}
    assert continued_body(body, "Good ", "plain", 3) == {**body, "messages": [USER, assistant]}
    marked = {**assistant, "prefix": True}
    assert continued_body(body, "Good ", "prefix", 3) == {**body, "messages": [USER, marked]}
    assert continued_body(body, "Good ", "continue_final_message", 3) == {
        **body,
        "messages": [USER, assistant],
        "continue_final_message": True,
        "add_generation_prompt": False,
    }
    assert body == {"model": "m", "messages": [USER], "temperature": 0.5}


def test_the_limits_of_tokens_are_reduced() -> None:
    body = {"messages": [USER], "max_tokens": 20, "max_completion_tokens": 8}
    continued = continued_body(body, "Good ", "plain", 7)
    assert continued is not None
    assert (continued["max_tokens"], continued["max_completion_tokens"]) == (13, 1)


@pytest.mark.parametrize(
    ("limits", "whole"),
    [
        ({"max_tokens": 7}, True),
        ({"max_tokens": 6}, True),
        ({"max_tokens": 20, "max_completion_tokens": 7}, True),
        ({"max_tokens": 8}, False),
        ({"max_tokens": None}, False),
        ({"max_tokens": True}, False),
        ({}, False),
    ],
)
def test_a_reply_that_has_reached_its_limit_has_all_tokens(limits: dict[str, Any], whole: bool) -> None:
    assert has_all_tokens({"messages": [USER], **limits}, 7) is whole


@pytest.mark.parametrize("way", ["prefix", "continue_final_message"])
def test_a_start_that_the_caller_gave_is_continued(way: Any) -> None:
    own = {"role": "assistant", "content": "Well, ", "prefix": True}
    for received in ("good", "Well, good"):  # some upstreams repeat the start
        continued = continued_body({"messages": [USER, own]}, received, way, 1)
        assert continued is not None
        assert continued["messages"] == [USER, {**own, "content": "Well, good"}]
        assert sent_text(continued) == "Well, good"
    parts = {**own, "content": [{"type": "text", "text": "Well, "}]}
    assert continued_body({"messages": [USER, parts]}, "good", way, 1) is None


def test_an_earlier_answer_is_not_a_start() -> None:
    earlier = {"role": "assistant", "content": "Well, "}
    continued = continued_body({"messages": [USER, earlier]}, "good", "plain", 1)
    assert continued is not None
    assert continued["messages"] == [USER, earlier, {"role": "assistant", "content": "good"}]
