"""Checking a chat.completions body."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import InvalidRequest
from broker.requests import parse_json, parse_request

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
def test_what_is_wrong_is_named(body: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(body)
    assert (caught.value.param, caught.value.code) == (param, code)


@pytest.mark.parametrize("body", [b"", b"{", b'"x"', b"[]", b"{\xff}", b'{"a":NaN}', b"[" * 100_000, b'{"a":1}x'])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_json(body)


def test_the_upstream_gets_everything_but_what_is_ours() -> None:
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


def test_the_fingerprint_leaves_out_how_the_answer_is_sent() -> None:
    plain = parse_request(BODY).fingerprint
    assert parse_request({**BODY, "stream": True, "stream_options": {"include_usage": True}}).fingerprint == plain
    assert parse_request(dict(reversed(BODY.items()))).fingerprint == plain
    assert parse_request({**BODY, "temperature": 0}).fingerprint != plain


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_no_message_content_crashes_the_check(content: Any) -> None:
    try:
        parse_request({"model": "m", "messages": [{"role": "user", "content": content}]})
    except InvalidRequest as error:
        assert error.param  # noqa: PT017
