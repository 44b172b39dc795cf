"""Chunks as the worker stores them: one line of valid UTF-8 JSON each, otherwise byte for byte as received."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.chunks import decode_chunk
from broker.events import CHUNK, USAGE
from worker.upstream.chunks import Chunk, InvalidChunk, decode_payload
from worker.upstream.sse import BOM, LineTooLong, SseEvent, SseSplitter

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def chunk(**delta: Any) -> bytes:
    return json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode()


def kept(payload: bytes) -> Chunk:
    found = decode_payload(payload)
    assert isinstance(found, Chunk)
    return found


def encoded(value: Any, *, ascii_only: bool = True) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return json.dumps(value).encode()


FIELDS = st.dictionaries(
    st.text(max_size=12) | st.sampled_from(["choices", "usage", "error", "message", "code", "base_resp", "object"]),
    JSON,
)


UNKNOWN = st.dictionaries(st.text(max_size=8).map("x_".__add__), JSON, max_size=3)


@given(UNKNOWN, st.lists(UNKNOWN, min_size=1, max_size=3), st.booleans())
def test_a_well_formed_chunk_is_stored_byte_for_byte(
    fields: dict[str, Any], deltas: list[Any], ascii_only: bool
) -> None:
    choices = [{"index": index, "delta": {"content": "a", **delta}} for index, delta in enumerate(deltas)]
    payload = encoded({**fields, "choices": choices}, ascii_only=ascii_only)
    assert kept(payload).data == payload


CHOICES = st.lists(
    st.dictionaries(
        st.sampled_from(["index", "delta", "message", "text", "finish_reason", "error", "content_filter_results"]), JSON
    )
    | JSON,
    max_size=3,
)


@given(FIELDS, CHOICES | JSON, st.sampled_from([b"", b"error", b"ping"]))
def test_a_stored_chunk_has_a_list_of_choices_each_with_a_delta(fields: Any, choices: Any, event: bytes) -> None:
    found = decode_payload(encoded({**fields, "choices": choices}), event)
    if not isinstance(found, Chunk) or (found.error is not None and not found.data):
        return
    stored = json.loads(found.data)
    assert isinstance(stored["choices"], list)
    for choice in stored["choices"]:
        assert isinstance(choice["delta"], dict)
        assert type(choice["index"]) is int


@given(st.binary(max_size=60))
def test_a_stored_chunk_is_one_line_of_standard_json(noise: bytes) -> None:
    payload = b'{"choices":[{"index":0,"delta":{"content":"x"}}],"x":' + noise + b"}"
    try:
        found = decode_payload(payload)
    except InvalidChunk:
        return
    assert isinstance(found, Chunk)
    stored = found.data
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
        b"[1,2]",
        b"[" * 100_000,
        b'{"choices":[{"index":0,"delta":{"content":"a","p":' + b"[" * 120 + b"]" * 120 + b"}}]}",
        b'{"choices":[{"index":0,"delta":{"content":"a","p":' + b"9" * 5000 + b"}}]}",
    ],
    ids=lambda payload: payload[:40].decode(errors="replace"),
)
def test_an_unparsable_chunk_is_refused(payload: bytes) -> None:
    with pytest.raises(InvalidChunk):
        decode_payload(payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"  ",
        b"null",
        b"7",
        b"true",
        b'""',
        b"[]",
        b"ping",
        b'{"code":0,"message":"ok"}',
        b'{"type":"ping"}',
        b'{"type":"ping","message":"hello"}',
        b"{}",
    ],
)
def test_a_keep_alive_is_not_a_chunk(payload: bytes) -> None:
    assert decode_payload(payload) is None


def test_raw_line_breaks_between_tokens_become_spaces() -> None:
    payload = b'{\r\n"choices":[\n{"index":0,"delta":{"content":"a"}}]\r}'
    assert kept(payload).data == b'{  "choices":[ {"index":0,"delta":{"content":"a"}}] }'


def test_half_a_surrogate_pair_is_stored_unchanged() -> None:
    payload = b'{"choices":[{"index":0,"delta":{"content":"\\ud83d"}}]}'
    assert kept(payload) == Chunk(CHUNK, payload, 1, (), None)
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
        ({"role": "assistant", "content": None, "tool_calls": None, "reasoning": ""}, 0),
        ({"audio": {"id": "audio_1", "data": "QUJD"}}, 1),
        ({"content": "", "images": [{"type": "image_url"}]}, 1),
        ({}, 0),
    ],
)
def test_a_chunk_counts_as_a_token_if_it_has_content(delta: dict[str, Any], tokens: int) -> None:
    assert kept(chunk(**delta)).tokens == tokens


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"choices": [], "usage": {"total_tokens": 3}}, USAGE),
        ({"choices": [], "usage": None, "prompt_filter_results": []}, CHUNK),  # the first chunk of Azure
        ({"usage": {"total_tokens": 3}}, USAGE),
        ({"choices": None, "usage": {"total_tokens": 3}}, USAGE),
        ({"choices": [7], "usage": {"total_tokens": 3}}, USAGE),
        ({"choices": [{"index": 0, "delta": {}}], "usage": {"total_tokens": 3}}, CHUNK),
    ],
)
def test_only_a_usage_object_without_choices_is_a_usage_chunk(value: dict[str, Any], kind: bytes) -> None:
    assert kept(json.dumps(value).encode()).type == kind


def test_finish_reasons_are_recognized_for_each_choice() -> None:
    reasons = ["stop", None, "length", "", "None", "eos"]
    choices = [{"index": i, "delta": {}, "finish_reason": reason} for i, reason in enumerate(reasons)]
    assert kept(json.dumps({"choices": choices}).encode()).finished == (0, 2, 5)
    assert kept(json.dumps({"choices": [{"index": "?", "finish_reason": "stop"}]}).encode()).finished == (0,)


FILTERED = {"content_filter_results": {"hate": {"filtered": False}}, "content_filter_offsets": {"check_offset": 0}}
"""Azure's filter result for earlier text."""


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ({"index": 0, "message": {"content": "a"}}, {"index": 0, "delta": {"content": "a"}}),
        ({"index": 0, "delta": None, "message": {"content": "a"}}, {"index": 0, "delta": {"content": "a"}}),
        ({"index": 0, "delta": {}, "message": {"content": "a"}}, {"index": 0, "delta": {"content": "a"}}),
        ({"index": 0, "delta": None}, {"index": 0, "delta": {}}),
        ({"index": 0, "finish_reason": None}, {"index": 0, "finish_reason": None, "delta": {}}),
        ({"index": 0, **FILTERED}, {"index": 0, **FILTERED, "delta": {}}),
        ({"index": 0, **FILTERED, "message": {"content": "a"}}, {"index": 0, **FILTERED, "delta": {"content": "a"}}),
        ({"index": 0, "text": "a"}, {"index": 0, "text": "a", "delta": {"content": "a"}}),
        ({"index": "1", "delta": {"content": "a"}}, {"index": 1, "delta": {"content": "a"}}),
        ({"index": -1, "delta": {"content": "a"}}, {"index": 0, "delta": {"content": "a"}}),
        ({"index": True, "delta": {"content": "a"}}, {"index": 0, "delta": {"content": "a"}}),
    ],
    ids=json.dumps,
)
def test_an_unusual_choice_is_stored_in_the_standard_form(given: Any, stored: Any) -> None:
    assert json.loads(kept(json.dumps({"choices": [given]}).encode()).data)["choices"] == [stored]


def test_a_choice_without_a_delta_gets_one_next_to_others() -> None:
    choices = [{"index": 0, "delta": {"content": "a"}}, {"index": 1, **FILTERED}]
    stored = kept(json.dumps({"id": "c", "choices": choices}).encode())
    assert json.loads(stored.data) == {"id": "c", "choices": [choices[0], {**choices[1], "delta": {}}]}
    assert stored.tokens == 1
    silent = kept(json.dumps({"id": "c", "choices": [choices[1]]}).encode())
    assert (silent.tokens, silent.finished, silent.is_message) == (0, (), False)


def test_arguments_given_as_an_object_are_stored_as_a_string() -> None:
    call = {"index": 0, "function": {"name": "lookup", "arguments": {"city": "Oslo"}}}
    [choice] = json.loads(kept(chunk(tool_calls=[call])).data)["choices"]
    assert json.loads(choice["delta"]["tool_calls"][0]["function"]["arguments"]) == {"city": "Oslo"}


ERRORS: list[Any] = [
    {"error": {"message": "no"}},
    {"error": "no"},
    {"error": {"code": 500}},
    {"error": {"message": "no"}, "choices": [{"index": 0, "delta": {"content": "a"}}]},
    {"errors": [{"message": "no"}]},
    {"object": "error", "message": "no"},
    {"type": "error", "message": "no"},
    {"code": 429, "message": "no", "status": "RESOURCE_EXHAUSTED"},
    {"error_code": 17, "error_msg": "no"},
    {"success": False},
    {"status": 503, "message": "no"},
    {"choices": None, "base_resp": {"status_code": 1008, "status_msg": "no"}},
    {"choices": [], "code": "Throttling", "message": "no"},
    {"choices": [{"index": 0, "delta": {}, "error": {"message": "no"}}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "abort"}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "Error"}]},
    [{"error": {"message": "no"}}],
]


@pytest.mark.parametrize("value", ERRORS, ids=json.dumps)
def test_every_form_of_an_error_is_recognized(value: Any) -> None:
    assert kept(json.dumps(value).encode()).error


def test_an_event_named_error_is_an_error() -> None:
    found = decode_payload(b'{"reason":"no"}', b"error")
    assert isinstance(found, Chunk)
    assert found.error == {"reason": "no"}


@pytest.mark.parametrize(
    "more",
    [
        {"error": None},
        {"error": {}},
        {"error": ""},
        {"error": {"code": 0, "message": ""}},
        {"error": {"code": None, "message": None}},
        {"base_resp": {"status_code": 0, "status_msg": ""}},
        {"code": 0, "message": "Success"},
        {"errors": []},
    ],
    ids=json.dumps,
)
def test_an_empty_error_field_is_not_an_error(more: dict[str, Any]) -> None:
    assert kept(json.dumps({"choices": [{"index": 0, "delta": {"content": "a"}}], **more}).encode()).error is None


PAYLOADS = st.lists(
    st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1), max_size=6
)


@given(
    PAYLOADS,
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(1, 9), min_size=1),
    st.booleans(),
    st.booleans(),
)
def test_payloads_are_complete_regardless_of_read_boundaries(
    payloads: list[str], newline: str, cuts: list[int], noise: bool, bom: bool
) -> None:
    other = ["event: chunk", "id: 7", "retry: 1", ": comment"] if noise else []
    lines = [line for payload in payloads for line in (*other, f"data: {payload}", "", *(": hb", "")[: 2 * noise])]
    stream = BOM * bom + "".join(line + newline for line in lines).encode()
    splitter, got, at, turn = SseSplitter(), list[SseEvent](), 0, 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        got += splitter.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
    assert [data.decode() for _, data in got] == payloads
    assert {name for name, _ in got} <= {b"chunk" if noise else b""}


def test_several_data_lines_are_joined() -> None:
    assert SseSplitter().feed(b"data: {\ndata:  1\r\ndata:}\r\n\r\n") == [(b"", b"{\n 1\n}")]


def test_an_event_without_a_blank_line_is_not_delivered() -> None:
    splitter = SseSplitter()
    assert splitter.feed(b"data: a\n\ndata: b\n") == [(b"", b"a")]
    assert splitter.feed(b"") == []


def test_the_name_of_an_event_does_not_carry_over() -> None:
    assert SseSplitter().feed(b"event: error\ndata: a\n\nevent: x\n\ndata: b\n\n") == [(b"error", b"a"), (b"", b"b")]


def test_a_byte_order_mark_is_skipped_before_an_event() -> None:
    splitter = SseSplitter()
    assert splitter.feed(BOM[:2]) == []
    events = splitter.feed(BOM[2:] + b"data: a\n\n" + BOM + b"data: b\n\ndata: " + BOM + b"c\n\n")
    assert events == [(b"", b"a"), (b"", b"b"), (b"", BOM + b"c")]


def test_lines_and_events_above_the_limit_are_refused() -> None:
    splitter = SseSplitter(1000)
    splitter.feed(b"data: " + b"x" * 994)
    with pytest.raises(LineTooLong):
        splitter.feed(b"x")
    with pytest.raises(LineTooLong):
        SseSplitter(1000).feed(b"data: xxxxxxxxxx\n" * 80)
