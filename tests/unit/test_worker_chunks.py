"""What the worker stores of an upstream's bytes: one line of valid UTF-8 and JSON per chunk, else verbatim."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.completion import decode_chunk
from broker.events import CHUNK, USAGE
from worker.chunks import BadChunk, examine
from worker.sse import LONGEST, LineTooLong, SseSplitter

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def chunk(**delta: Any) -> bytes:
    return json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode()


@given(st.dictionaries(st.text(max_size=12) | st.sampled_from(["choices", "usage", "error"]), JSON), st.booleans())
def test_any_json_object_is_kept_byte_for_byte(value: dict[str, Any], ascii_only: bool) -> None:
    try:
        payload = json.dumps(value, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:
        payload = json.dumps(value).encode()
    assert examine(payload).data == payload


@given(st.binary(max_size=60))
def test_what_is_stored_is_one_line_that_every_parser_takes(noise: bytes) -> None:
    payload = b'{"choices":[{"index":0,"delta":{"content":"x"}}],"x":' + noise + b"}"
    try:
        stored = examine(payload).data
    except BadChunk:
        return
    assert not set(stored) & {0x0A, 0x0D}
    json.loads(stored.decode(), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    "payload",
    [
        b'{"choices":[],"x":"\xff\xfe"}',
        b'{"choices":[{"index":0,"delta":{"content":"\xc3\x28"}}]}',
        b'{"x":NaN}',
        b'{"x":-Infinity}',
        b'{"choices":[',
        b'{"x":1}{"y":2}',
        b'{"x":"\x01"}',
        b"[]",
        b'"text"',
        b"null",
        b"",
        b"[" * 100_000,
    ],
)
def test_what_a_reader_could_not_parse_is_refused(payload: bytes) -> None:
    with pytest.raises(BadChunk):
        examine(payload)


def test_raw_line_breaks_between_tokens_become_spaces() -> None:
    payload = b'{\r\n"choices":[\n{"index":0,"delta":{"content":"a"}}]\r}'
    assert examine(payload).data == b'{  "choices":[ {"index":0,"delta":{"content":"a"}}] }'


def test_half_a_surrogate_pair_is_kept_as_it_came() -> None:
    payload = b'{"choices":[{"index":0,"delta":{"content":"\\ud83d"}}]}'
    assert examine(payload) == (CHUNK, payload, 1, (), None)
    assert decode_chunk(payload)["choices"][0]["delta"]["content"] == "\ud83d"


@pytest.mark.parametrize(
    ("delta", "tokens"),
    [
        ({"content": "a"}, 1),
        ({"reasoning_content": "a"}, 1),
        ({"reasoning": "a"}, 1),
        ({"refusal": "a"}, 1),
        ({"tool_calls": [{"index": 0}]}, 1),
        ({"role": "assistant", "content": ""}, 0),
        ({"content": None}, 0),
        ({}, 0),
    ],
)
def test_a_chunk_counts_if_it_says_something(delta: dict[str, Any], tokens: int) -> None:
    assert examine(chunk(**delta)).tokens == tokens


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"choices": [], "usage": {"total_tokens": 3}}, USAGE),
        ({"choices": [], "usage": None, "prompt_filter_results": []}, CHUNK),  # Azure's first
        ({"usage": {"total_tokens": 3}}, CHUNK),
        ({"choices": None, "usage": {"total_tokens": 3}}, CHUNK),
        ({"choices": ["?"], "usage": {"total_tokens": 3}}, CHUNK),
        ({"choices": [{"index": 0, "delta": {}}], "usage": {"total_tokens": 3}}, CHUNK),
    ],
)
def test_only_a_usage_object_without_choices_is_a_usage_chunk(value: dict[str, Any], kind: bytes) -> None:
    assert examine(json.dumps(value).encode()).type == kind


def test_finish_reasons_are_told_by_choice() -> None:
    choices = [{"index": i, "delta": {}, "finish_reason": reason} for i, reason in enumerate(["stop", None, "length"])]
    assert examine(json.dumps({"choices": choices}).encode()).finished == (0, 2)
    assert examine(json.dumps({"choices": [{"index": "?", "finish_reason": "stop"}]}).encode()).finished == (0,)


def test_an_error_instead_of_a_chunk_is_told() -> None:
    assert examine(b'{"error":{"message":"no"}}').error == {"message": "no"}
    assert examine(b'{"error":null,"choices":[]}').error is None


PAYLOADS = st.lists(
    st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1), max_size=6
)


@given(PAYLOADS, st.sampled_from(["\n", "\r\n"]), st.lists(st.integers(1, 9), min_size=1), st.booleans())
def test_payloads_come_out_whole_however_the_reads_are_cut(
    payloads: list[str], newline: str, cuts: list[int], noise: bool
) -> None:
    other = ["event: chunk", "id: 7", "retry: 1", ": comment"] if noise else []
    lines = [line for payload in payloads for line in (*other, f"data: {payload}", "", *(": hb", "")[: 2 * noise])]
    stream = "".join(line + newline for line in lines).encode()
    splitter, got, at, turn = SseSplitter(), list[bytes](), 0, 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        got += splitter.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
    assert [payload.decode() for payload in got] == payloads


def test_data_over_several_lines_is_joined() -> None:
    assert SseSplitter().feed(b"data: {\ndata:  1\r\ndata:}\r\n\r\n") == [b"{\n 1\n}"]


def test_an_event_that_no_blank_line_ends_is_not_delivered() -> None:
    splitter = SseSplitter()
    assert splitter.feed(b"data: a\n\ndata: b\n") == [b"a"]
    assert splitter.feed(b"") == []


def test_a_line_and_an_event_longer_than_a_mebibyte_are_refused() -> None:
    splitter = SseSplitter()
    splitter.feed(b"data: " + b"x" * (LONGEST - 6))
    with pytest.raises(LineTooLong):
        splitter.feed(b"x")
    with pytest.raises(LineTooLong):
        SseSplitter().feed(b"data: xxxxxxxxxx\n" * (LONGEST // 16 + 2))
