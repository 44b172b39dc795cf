"""The table of merge cases, checked against the fold, the chat response and the command line."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest

from api.dialects.openai_chat.routes import completion
from broker.chunks import decode_chunk
from broker.cli.output import Printer
from broker.completion.fold import Completion, text_of
from broker.generation import Generation
from broker.ids import Cursor
from tests.integration.broker.completion.cases import CASES, Json, calls_of, choices_of, chunks_of, text_of_case
from tokencast_client import Event

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def folded(chunks: list[Json]) -> list[Json]:
    found = Completion()
    for chunk in chunks:
        found.add(chunk)
    return found.choices


def answered(choices: list[Json], status: str = "completed") -> Json:
    """The chat response of a generation with these choices."""
    generation = Generation("gen_1", status, "m", 1.0, None, None, None, 1, Cursor(1, 1), None, None, {})
    return completion(replace(generation, choices=choices))


@each_case
def test_the_chunks_are_merged(case: Json) -> None:
    chunks = chunks_of(case)
    before = copy.deepcopy(chunks)
    choices = folded(chunks)
    assert choices == choices_of(case)
    assert text_of(choices) == text_of_case(case)
    assert chunks == before


@each_case
def test_chunks_decoded_from_bytes_are_merged_the_same(case: Json) -> None:
    assert folded([decode_chunk(json.dumps(chunk).encode()) for chunk in chunks_of(case)]) == choices_of(case)


@each_case
def test_the_command_line_prints_the_text(case: Json, capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer()
    for chunk in chunks_of(case):
        printer.show(Event("1-1", "chunk", json.dumps(chunk)))
    assert capsys.readouterr() == (case.get("stream_text", text_of_case(case)), "")


@each_case
def test_the_chat_response_has_the_format_of_openai(case: Json) -> None:
    for choice, merged in zip(answered(choices_of(case))["choices"], choices_of(case), strict=True):
        message = choice["message"]
        assert message["content"] == merged["message"]["content"]
        assert "tool_calls" not in message or message["tool_calls"]
        assert not set(case.get("chat_absent", ())) & message.keys()
        assert choice["finish_reason"] == (merged["finish_reason"] or ("tool_calls" if calls_of(case) else "stop"))
        calls = [call_of(call) for call in message.get("tool_calls", ())]
        if "chat_calls" in case:
            assert calls == case["chat_calls"]
        else:
            assert [call[1:] for call in calls] == calls_of(case)


CALL = {"id": "call_a", "type": "function", "function": {"name": "tides", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("stored", "answer"),
    [
        (None, None),
        ("none", None),
        (False, None),
        ({}, None),
        ([None], None),
        ([{}, "x", []], None),
        (CALL, [CALL]),
        ([None, CALL], [CALL]),
        ([{"index": 0, "id": "call_a", "name": "tides", "arguments": "{}"}], [CALL]),
        ([{"id": "call_a", "function": "x", "name": "tides", "arguments": {}}], [CALL]),
    ],
)
def test_stored_tool_calls_of_any_form_become_complete_calls_or_are_omitted(stored: object, answer: object) -> None:
    message = {"role": "assistant", "content": "Rain.", "tool_calls": stored}
    (choice,) = answered([{"index": 0, "message": message, "finish_reason": None}])["choices"]
    assert choice["message"].get("tool_calls", None) == answer
    assert ("tool_calls" in choice["message"]) is (answer is not None)
    assert choice["finish_reason"] == ("tool_calls" if answer else "stop")


def call_of(call: Json) -> list[Any]:
    function = call.get("function") or {"name": call["custom"]["name"], "arguments": call["custom"]["input"]}
    return [call["id"], function["name"], function["arguments"]]
