"""The cost of merging: linear in the size of a reply, not quadratic."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from broker.completion.fold import Completion
from tests.integration.broker.completion.cases import Json


def delta(**fields: Any) -> Json:
    return {"choices": [{"index": 0, "delta": fields}]}


def call(number: int, **function: Any) -> Json:
    return {"index": number, "id": f"call_{number}", "function": {"name": "f", "arguments": "{}", **function}}


def without(fields: Json, *names: str) -> Json:
    return {name: value for name, value in fields.items() if name not in names}


SHAPES: dict[str, Callable[[int], list[Json]]] = {
    "pieces of a text": lambda n: [delta(content="x") for _ in range(n)],
    "calls": lambda n: [delta(tool_calls=[call(number)]) for number in range(n)],
    "calls in one delta": lambda n: [delta(tool_calls=[call(number) for number in range(n)])],
    "alternating calls": lambda n: [delta(tool_calls=[call(number % 50)]) for number in range(n)],
    "calls at one index": lambda n: [delta(tool_calls=[{**call(number), "index": 0}]) for number in range(n)],
    "calls without an index": lambda n: [delta(tool_calls=[without(call(number), "index")]) for number in range(n)],
    "calls without index and id": lambda n: [
        delta(tool_calls=[without(call(number), "index", "id")]) for number in range(n)
    ],
    "pieces of one call": lambda n: [delta(tool_calls=[call(0, arguments="1")]) for _ in range(n)],
    "pieces of a name": lambda n: [delta(tool_calls=[call(0, name="ab"[number % 2])]) for number in range(n)],
    "arguments as objects": lambda n: [delta(tool_calls=[call(0, arguments={f"a{number}": 1})]) for number in range(n)],
    "repeated complete calls": lambda n: [delta(tool_calls=[call(0, arguments='{"a":1}')]) for _ in range(n)],
    "brackets in a text": lambda n: [delta(tool_calls=[call(0, arguments='{"a}')]) for _ in range(n)],
    "objects as text": lambda n: [delta(tool_calls=[call(0, arguments=f'{{"a{number}":1}}')]) for number in range(n)],
    "nested objects": lambda n: [
        delta(tool_calls=[call(0, arguments={"a": {f"b{number}": {"c": 1}}})]) for number in range(n)
    ],
    "an object and empty arguments": lambda n: [
        delta(tool_calls=[call(0, arguments='{"a":1}' if number == 0 else ["{}", " ", "null"][number % 3])])
        for number in range(n)
    ],
    "an id for each piece": lambda n: [
        delta(tool_calls=[{**call(number, name="" if number else "f", arguments='{"a}'), "index": 0}])
        for number in range(n)
    ],
    "calls without a function": lambda n: [
        delta(tool_calls=[{"index": 0, "id": "call_0", "name": "f", "arguments": "1"}]) for _ in range(n)
    ],
    "log probabilities": lambda n: [
        {"choices": [{"logprobs": {"content": [{"id": number, "token": "x"}]}, "token_ids": [number]}]}
        for number in range(n)
    ],
    "a delta and the same message": lambda n: [
        {"choices": [{"delta": {"content": "x"}, "message": {"content": "x", "role": "assistant"}}]} for _ in range(n)
    ],
    "choices without an index": lambda n: [{"choices": [{"delta": {"content": "x"}}] * n}],
    "alternating text and thoughts": lambda n: [
        delta(content="x" if number % 2 else [{"type": "thinking", "thinking": "y"}]) for number in range(n)
    ],
    "details": lambda n: [
        delta(reasoning_details=[{"index": number, "type": "reasoning.text", "text": "x"}]) for number in range(n)
    ],
    "annotations": lambda n: [delta(annotations=[{"type": "url_citation", "id": number}]) for number in range(n)],
    "choices": lambda n: [{"choices": [{"index": number, "delta": {"content": "x"}} for number in range(n)]}],
    "messages in pieces": lambda n: [{"choices": [{"message": {"content": "xy"[number % 2]}}]} for number in range(n)],
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_twice_as_many_pieces_take_at_most_twice_as_many_steps(shape: Callable[[int], list[Json]]) -> None:
    few, many = steps(shape(400)), steps(shape(800))
    assert many < 2.3 * few


def steps(chunks: list[Json]) -> int:
    """The number of function calls, including built-in functions, to merge and render all chunks."""
    count = 0

    def counted(_: object, event: str, __: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    completion = Completion()
    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        for chunk in chunks:
            completion.add(chunk)
        assert completion.choices
    finally:
        sys.setprofile(before)
    return count
