"""Merging chunks into messages."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from broker.chunks import decode_chunk
from broker.completion.fold import Completion, text_of


def merged(*chunks: Any) -> list[dict[str, Any]]:
    completion = Completion()
    for chunk in chunks:
        completion.add(chunk)
    return completion.choices


def delta(index: int = 0, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": fields, "finish_reason": finish}]}


def test_every_text_field_is_joined() -> None:
    (choice,) = merged(
        delta(role="assistant", content=None),
        delta(reasoning_content="thin", x_new="a"),
        delta(reasoning_content="king", x_new="b"),
        delta(content="Hel"),
        delta(content=None),
        delta(content="lo", refusal="no"),
        delta(finish="stop"),
    )
    assert choice == {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": "Hello",
            "reasoning_content": "thinking",
            "refusal": "no",
            "x_new": "ab",
        },
        "finish_reason": "stop",
    }


def test_tool_calls_are_merged_by_index() -> None:
    (choice,) = merged(
        delta(tool_calls=[{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}]),
        delta(tool_calls=[{"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": "{"}}]),
        delta(
            tool_calls=[{"index": 0, "function": {"arguments": '{"x"'}}, {"index": 1, "function": {"arguments": "}"}}]
        ),
        delta(tool_calls=[{"index": 0, "id": "a", "function": {"arguments": ":1}"}}]),
    )
    calls = choice["message"]["tool_calls"]
    assert [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls] == [
        ("a", "f", '{"x":1}'),
        ("b", "g", "{}"),
    ]


def test_a_tool_call_without_index_is_complete() -> None:
    """Gemini's compatible endpoint sends tool calls in this form."""
    (choice,) = merged(delta(tool_calls=[{"id": "a"}]), delta(tool_calls=[{"id": "b"}]))
    assert [call["id"] for call in choice["message"]["tool_calls"]] == ["a", "b"]


def test_pieces_without_index_and_id_belong_to_the_last_tool_call() -> None:
    (choice,) = merged(
        delta(tool_calls=[{"id": "a", "function": {"name": "f", "arguments": ""}}]),
        delta(tool_calls=[{"function": {"arguments": '{"x":'}}]),
        delta(tool_calls=[{"function": {"arguments": "1}"}}]),
        delta(tool_calls=[{"id": "b", "function": {"name": "g", "arguments": "{}"}}]),
    )
    calls = choice["message"]["tool_calls"]
    assert [(call["id"], call["function"]["arguments"]) for call in calls] == [("a", '{"x":1}'), ("b", "{}")]


def test_log_probabilities_are_concatenated() -> None:
    (choice,) = merged(
        *({"choices": [{"index": 0, "delta": {}, "logprobs": {"content": [{"token": t}]}}]} for t in "ab")
    )
    assert choice["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}]}


def test_choices_are_separate_and_malformed_chunks_are_ignored() -> None:
    choices = merged(
        {"choices": [], "prompt_filter_results": []},
        delta(1, content="b"),
        delta(0, content="a"),
        {"choices": [{"delta": {"content": "c"}}]},
        {"choices": None},
        {"choices": [{"index": 0, "message": "not part of a stream"}]},
        {"choices": [{"index": 1, "delta": None, "finish_reason": "length"}]},
        {"usage": {"total_tokens": 3}, "choices": []},
    )
    assert [(c["index"], c["message"]["content"], c["finish_reason"]) for c in choices] == [
        (0, "ac", None),
        (1, "b", "length"),
    ]


def test_the_last_usage_counts() -> None:
    completion = Completion()
    for chunk in ({"usage": None}, {"usage": {"total_tokens": 1}, "choices": []}, {"usage": None}):
        completion.add(chunk)
    assert completion.usage == {"total_tokens": 1}


@given(st.text(), st.lists(st.integers(0, 200)))
def test_text_survives_any_cut_even_inside_a_surrogate_pair(text: str, cuts: list[int]) -> None:
    """JSON escapes a pair as two halves, and some upstreams send them in two chunks."""
    halves = json.loads('"' + "".join(f"\\u{unit:04x}" for unit in _units(text)) + '"') if text else ""
    units = [f"\\u{unit:04x}" for unit in _units(text)]
    bounds = sorted({min(cut, len(units)) for cut in cuts} | {0, len(units)})
    chunks = [
        decode_chunk(b'{"choices":[{"index":0,"delta":{"content":"%b"}}]}' % "".join(units[a:b]).encode())
        for a, b in itertools.pairwise(bounds)
    ]
    assert text_of(merged(*chunks)) == text == halves


def _units(text: str) -> list[int]:
    encoded = text.encode("utf-16-be")
    return [int.from_bytes(encoded[i : i + 2]) for i in range(0, len(encoded), 2)]


def test_every_merged_value_can_be_encoded_as_json() -> None:
    """Half a surrogate pair can occur in any string of a chunk, including names and keys."""
    half = "\ud83c"
    completion = Completion()
    completion.add({"choices": [{"finish_reason": half, "delta": {"role": half, half: half, "x": [half, {half: 1}]}}]})
    completion.add({"choices": [], "usage": {half: half}})
    assert "\ufffd" in json.dumps([completion.choices, completion.usage], ensure_ascii=False)
    assert msgspec.json.encode([completion.choices, completion.usage])
