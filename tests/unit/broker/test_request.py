"""Validation of a chat.completions body."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import InvalidRequest
from broker.json_depth import MAX_DEPTH
from broker.request.body import parse_json, parse_request

MESSAGES = [{"role": "user", "content": "hi"}]
BODY: dict[str, Any] = {"model": "m", "messages": MESSAGES}


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "model", "missing_required_parameter"),
        ({"model": 1, "messages": MESSAGES}, "model", "invalid_type"),
        ({"model": "", "messages": MESSAGES}, "model", "invalid_value"),
        ({"model": "a\nb", "messages": MESSAGES}, "model", "invalid_value"),
        ({"model": "m"}, "messages", "missing_required_parameter"),
        ({"model": "m", "messages": []}, "messages", "empty_array"),
        ({"model": "m", "messages": "hi"}, "messages", "invalid_type"),
        ({"model": "m", "messages": ["hi"]}, "messages[0]", "invalid_type"),
        ({"model": "m", "messages": [{"content": "hi"}]}, "messages[0].role", "invalid_value"),
        (
            {"model": "m", "messages": [*MESSAGES, {"role": "user", "content": 1}]},
            "messages[1].content",
            "invalid_type",
        ),
        ({**BODY, "n": 0}, "n", "invalid_value"),
        ({**BODY, "n": True}, "n", "invalid_type"),
        ({**BODY, "stream": "yes"}, "stream", "invalid_type"),
        ({**BODY, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "invalid_type"),
        ({**BODY, "metadata": {"a": 1}}, "metadata", "invalid_type"),
        ({**BODY, "metadata": {str(i): "" for i in range(17)}}, "metadata", "invalid_value"),
        ({**BODY, "on_upstream_error": "retry"}, "on_upstream_error", "invalid_value"),
        ({**BODY, "on_upstream_error": {}}, "on_upstream_error", "invalid_value"),
        ({**BODY, "on_upstream_error": False}, "on_upstream_error", "invalid_value"),
        ({**BODY, "ttl_seconds": "1"}, "ttl_seconds", "invalid_type"),
        ({**BODY, "ttl_seconds": 0}, "ttl_seconds", "invalid_value"),
        ({**BODY, "ttl_seconds": 1e12}, "ttl_seconds", "invalid_value"),
    ],
)
def test_the_invalid_parameter_is_named(body: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(body)
    assert (caught.value.param, caught.value.code) == (param, code)


@pytest.mark.parametrize("body", [b"", b"{", b'"x"', b"[]", b"{\xff}", b'{"a":NaN}', b"[" * 100_000, b'{"a":1}x'])
def test_a_body_that_is_not_a_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_json(body)


def test_the_upstream_gets_everything_except_our_parameters() -> None:
    body = {
        **BODY,
        "temperature": 0.1,
        "x_unknown": {"a": [1]},
        "metadata": {"k": "v"},
        "ttl_seconds": 5,
        "stream": True,
    }
    request = parse_request({**body, "on_upstream_error": "restart"})
    assert json.loads(request.upstream) == {**BODY, "temperature": 0.1, "x_unknown": {"a": [1]}}
    assert (request.metadata, request.ttl_seconds, request.on_upstream_error) == ({"k": "v"}, 5.0, "restart")


def test_each_policy_is_accepted_at_the_top_and_in_the_options() -> None:
    for policy in ("fail", "restart", "continue"):
        assert parse_request({**BODY, "on_upstream_error": policy}).on_upstream_error == policy
        assert parse_request({**BODY, "tokencast": {"on_upstream_error": policy}}).on_upstream_error == policy


def test_the_fingerprint_omits_stream_options() -> None:
    plain = parse_request(BODY).fingerprint
    assert parse_request({**BODY, "stream": True, "stream_options": {"include_usage": True}}).fingerprint == plain
    assert parse_request(dict(reversed(BODY.items()))).fingerprint == plain
    assert parse_request({**BODY, "temperature": 0}).fingerprint != plain


@pytest.mark.parametrize(
    "message",
    [
        {"role": "ipython", "content": "x"},
        {"role": "Пользователь", "content": None},
        {"role": "user", "content": {"type": "text", "text": "x"}},
        {"role": "user", "content": [1, None, [], {"text": {}}]},
        {"role": "assistant", "content": [], "tool_calls": 7, "x": {"y": [{}]}},
    ],
)
def test_unknown_roles_and_contents_are_passed_on(message: dict[str, Any]) -> None:
    assert json.loads(parse_request({**BODY, "messages": [message]}).upstream)["messages"] == [message]


def test_a_byte_order_mark_is_skipped() -> None:
    text = json.dumps(BODY).encode()
    assert parse_json(b"\xef\xbb\xbf" + text) == BODY
    with pytest.raises(InvalidRequest):
        parse_json(b"\xef\xbb\xbf" * 2 + text)


@pytest.mark.parametrize(
    ("escaped", "text"),
    [
        (r"\ud83d", "\ufffd"),
        (r"\uDE00", "\ufffd"),
        (r"a\ud83d\n", "a\ufffd\n"),
        (r"\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        (r"\ude00\ud83d", "\ufffd\ufffd"),
        (r"\\ud83d", r"\ud83d"),
        (r"\\\ud83d", "\\\ufffd"),
        (r"\ud83d\u0041", "\ufffdA"),
        (r"\ud83d\\ude00", "\ufffd\\ude00"),
        (r"\ud83d\ude00", "\U0001f600"),
    ],
)
def test_half_a_surrogate_pair_is_replaced(escaped: str, text: str) -> None:
    assert parse_json(f'{{"{escaped}":["{escaped}"]}}'.encode()) == {text: [text]}


def test_a_body_with_half_a_pair_and_another_error_is_refused() -> None:
    for body in (
        rb'{"a":"\ud83d',
        rb'{"a":"\ud83d",}',
        rb'{"a":"\ud83"}',
        rb'{"a":"\ud83d"} x',
        b'{"a":"\xed\xa0\xbd"}',
    ):
        with pytest.raises(InvalidRequest) as caught:
            parse_json(body)
        assert caught.value.code == "invalid_json"


@pytest.mark.parametrize("more", [0, 1, 875, 100_000])
@pytest.mark.parametrize(("begin", "end"), [(b"[", b"]"), (b'{"x":', b"}")])
def test_a_body_can_have_a_hundred_levels(begin: bytes, end: bytes, more: int) -> None:
    """The outermost object counts as one."""
    levels = MAX_DEPTH - 1 + more
    body = json.dumps(BODY).encode()[:-1] + b',"x":' + begin * levels + b"1" + end * levels + b"}"
    if more:
        with pytest.raises(InvalidRequest) as caught:
            parse_request(parse_json(body))
        assert (caught.value.code, str(MAX_DEPTH) in caught.value.message) == ("invalid_json", True)
    else:
        assert json.loads(parse_request(parse_json(body)).upstream) == json.loads(body)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 5000, "NaN", "Infinity", "01", "1.", "+1"])
def test_a_number_out_of_range_is_refused(number: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_json(f'{{"a":{number}}}'.encode())
    assert caught.value.code == "invalid_json"


# Values that callers may send: halves of surrogate pairs, integers of any length, floats up to the largest.
TEXTS = st.text(st.characters(exclude_categories=()), max_size=8)
NUMBERS = st.integers() | st.integers(10**18, 10**400) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
MESSAGE = st.dictionaries(st.sampled_from(["role", "content", "name", "tool_calls"]) | TEXTS, VALUES)
VALID = st.fixed_dictionaries({"role": TEXTS, "content": VALUES})


def as_text(value: Any) -> Any:
    """Replace each half of a surrogate pair with U+FFFD and join whole pairs."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [as_text(one) for one in value]
    return {as_text(name): as_text(one) for name, one in value.items()} if isinstance(value, dict) else value


@given(
    st.lists(MESSAGE | VALID, min_size=1, max_size=3),
    st.dictionaries(
        TEXTS | st.sampled_from(["n", "metadata", "ttl_seconds", "stream", "stream_options", "user"]), VALUES
    ),
    st.booleans(),
)
def test_a_body_is_refused_or_accepted_unchanged(messages: list[Any], more: dict[str, Any], ascii_only: bool) -> None:
    """An accepted body reaches the upstream unchanged and is valid JSON; no body makes the check raise."""
    body = json.dumps({**more, "model": "m", "messages": messages}, ensure_ascii=ascii_only)
    try:
        request = parse_request(parse_json(body.encode(errors="surrogatepass")))
    except InvalidRequest as error:
        assert error.message.isprintable()  # noqa: PT017
        return
    expected = as_text(json.loads(body))
    ours = ("metadata", "on_upstream_error", "ttl_seconds", "stream")
    assert json.loads(request.upstream) == {name: value for name, value in expected.items() if name not in ours}
    assert msgspec.json.decode(request.upstream)["messages"] == expected["messages"]
    assert request.prompt_tokens >= 0
    assert len(request.fingerprint) == 64


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("\n \t\n  First\tline  \nsecond", "First line"),
        ("a\x1b[31m\u202eb\ufeff 🦀", "a [31m b 🦀"),
        ("x" * 121, "x" * 119 + "…"),
        ("x" * 120, "x" * 120),
        ([{"type": "image_url"}, {"type": "text", "text": " "}, {"type": "text", "text": "Look"}], "Look"),
        ({"text": "A part"}, "A part"),
        ([1, {"text": 1}], ""),
        (" " * 5000 + "late", ""),
        ("", "hi"),
        (None, "hi"),
    ],
)
def test_the_preview_is_the_first_line_of_the_last_user_message(content: object, line: str) -> None:
    """One without text is skipped."""
    messages = [*MESSAGES, {"role": "user", "content": content}, {"role": "assistant", "content": "no"}]
    assert parse_request({"model": "m", "messages": messages}).preview == (line or "hi")
