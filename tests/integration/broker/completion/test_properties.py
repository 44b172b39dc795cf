"""Properties of merging that hold for any JSON."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokencast_client
from broker.chunks import decode_chunk, text_of_chunk
from broker.cli.output import Printer
from broker.completion.fold import Completion, fold, text_of
from broker.events import CHUNK, Event
from broker.ids import Cursor
from broker.json_depth import MAX_DEPTH
from tests.integration.broker.completion.cases import Json
from tests.integration.broker.completion.dashboard import sections
from tests.integration.broker.completion.mutations import mutated
from tests.integration.broker.completion.test_cases import answered, folded

KEYS = [
    *("choices", "index", "delta", "message", "finish_reason", "logprobs", "usage", "role", "content", "reasoning"),
    *("reasoning_content", "reasoning_details", "refusal", "tool_calls", "function_call", "function", "custom", "name"),
    *("arguments", "input", "id", "type", "text", "thinking", "summary", "data", "signature", "audio", "images", "url"),
    *("image_url", "annotations", "x"),
]
WORDS = [
    "text",
    "thinking",
    "function",
    "assistant",
    "stop",
    "null",
    "{",
    "}",
    '{"a":1}',
    "data:a",
    "\ud83c",
    "\udf27",
    "",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=5)
    ),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from(KEYS), JSON, max_size=6)
CHOICES = st.fixed_dictionaries({"delta": OBJECTS}, optional={"index": st.integers(0, 2) | JSON, "message": OBJECTS})
CHUNKS = st.lists(st.fixed_dictionaries({"choices": st.lists(CHOICES, max_size=3)}) | OBJECTS, max_size=6)
REPLIES = st.randoms(use_true_random=False).map(mutated)


def check(chunks: list[Json]) -> None:
    choices = folded(chunks)
    stored = msgspec.json.encode(choices)
    assert msgspec.json.decode(stored) == choices == json.loads(json.dumps(choices, allow_nan=False))
    assert folded(chunks) == choices, "merging is not deterministic"
    assert isinstance(text_of(choices), str)
    for status in ("in_progress", "completed"):
        check_answer(answered(choices, status))


def check_answer(answer: Json) -> None:
    msgspec.json.encode(answer)
    for choice in answer["choices"]:
        message = choice["message"]
        assert isinstance(message["content"], str | list | None)
        assert isinstance(choice["finish_reason"], str | None)
        assert isinstance(message["role"], str)
        assert message["role"]
        if "tool_calls" in message:
            assert message["tool_calls"]
            assert isinstance(message["tool_calls"], list)
            for call in message["tool_calls"]:
                assert isinstance(call["id"], str)
                assert "index" not in call
                body, said = ("function", "arguments") if call.get("function") else ("custom", "input")
                assert isinstance(call[body]["name"], str)
                assert isinstance(call[body][said], str)


@given(CHUNKS)
def test_any_json_can_be_merged_stored_and_returned(chunks: list[Json]) -> None:
    check(chunks)


@given(REPLIES)
def test_a_damaged_reply_can_be_merged_stored_and_returned(chunks: list[Json]) -> None:
    check(chunks)


@given(CHUNKS | REPLIES, st.integers(0, 8))
def test_reading_a_fold_midway_does_not_change_the_result(chunks: list[Json], at: int) -> None:
    """A gateway folds in this way: it renders the events so far and later adds the new ones."""
    events = [
        Event(Cursor(1, number), CHUNK, 0, json.dumps(chunk).encode()) for number, chunk in enumerate(chunks, start=1)
    ]
    completion = fold(events[:at])
    assert msgspec.json.encode(completion.choices)
    assert fold(events[at:], completion).choices == fold(events).choices


@given(CHUNKS | REPLIES)
def test_the_command_line_shows_any_chunk(chunks: list[Json]) -> None:
    printer = Printer()
    for chunk in chunks:
        assert isinstance(text_of_chunk(chunk), str)
        printer.show(tokencast_client.Event("1-1", "chunk", json.dumps(chunk)))


@given(JSON, st.binary(max_size=8))
def test_a_log_can_contain_anything(value: Any, garbage: bytes) -> None:
    for data in (json.dumps(value).encode(), garbage):
        completion = Completion()
        completion.add(decode_chunk(data))
        assert msgspec.json.encode(completion.choices)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400, "9" * 6000, "1.5e300", "NaN", "Infinity"])
def test_numbers_of_any_size_can_be_stored_and_read(number: str) -> None:
    completion = Completion()
    completion.add(decode_chunk(b'{"choices":[{"delta":{"content":"a","x":%b,"y":[%b]}}]}' % ((number.encode(),) * 2)))
    stored = msgspec.json.encode(completion.choices)
    assert msgspec.json.decode(stored) == json.loads(stored) == completion.choices
    assert text_of(completion.choices) == "a"


@pytest.mark.parametrize("depth", [MAX_DEPTH - 6, MAX_DEPTH + 1, 5000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"content":', "}]")])
def test_a_chunk_nested_too_deeply_is_skipped(depth: int, opening: str, closing: str) -> None:
    levels = depth // opening.count("[") if opening == "[" else depth // len(closing)
    completion = Completion()
    completion.add({"choices": [{"delta": {"content": "a"}}]})
    deep = opening * levels + "7" + closing * levels
    completion.add(decode_chunk(b'{"choices":[{"delta":{"content":"b","x":%b}}]}' % deep.encode()))
    assert text_of(completion.choices) == ("ab" if depth < MAX_DEPTH else "a")
    assert msgspec.json.encode(completion.choices)


@pytest.mark.node
def test_the_dashboard_shows_any_reply_and_the_same_calls(tmp_path: Path) -> None:
    """The two implementations also agree on replies outside the table."""
    replies = {str(seed): mutated(random.Random(seed)) for seed in range(1000)}
    shown = sections(replies, tmp_path)
    for seed, chunks in replies.items():
        check(chunks)
        found = called(shown[seed])
        assert [section for section in found if section[0] == "error"] == []
        if '"custom"' not in json.dumps(chunks):  # a call that is both a function and a custom tool is shown as either
            assert found == calls_of(chunks), seed


def calls_of(chunks: list[Json]) -> list[list[str]]:
    """Heading and text of the tool calls of choice 0 in the chat response."""
    messages = [choice["message"] for choice in answered(folded(chunks))["choices"] if choice["index"] == 0]
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    bodies = [call.get("function") or call["custom"] for call in calls]
    return [[f"Tool call: {body['name']}", body.get("arguments", body.get("input"))] for body in bodies]


def called(shown: list[list[str]]) -> list[list[str]]:
    return [section for section in shown if section[0].startswith(("Tool call", "error"))]
