"""Content negotiation: JSON or an event stream, from the `Accept` header."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from api.accept import names_event_stream, prefers_json


@pytest.mark.parametrize(
    "accept",
    [
        "application/json",
        "Application/JSON; charset=utf-8",
        "application/json, text/plain, */*",
        "application/json, */*;q=0.8",
        "application/json, text/event-stream;q=0.9",
        "text/event-stream;q=0, */*",
        "application/*",
    ],
)
def test_json_is_preferred(accept: str) -> None:
    assert prefers_json(Headers({"accept": accept}))


@pytest.mark.parametrize(
    "accept",
    [
        "text/event-stream",
        "application/json, text/event-stream",
        "text/event-stream, application/json",
        "application/json;q=0.5, text/event-stream",
        "application/json;q=0.5, */*",
        "application/json;q=0, */*",
        "application/jsonlines",
        "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        "text/*",
        "*/*",
        "image/png",
        "",
        "application/json;q=nan, */*",
    ],
)
def test_json_is_not_preferred(accept: str) -> None:
    assert not prefers_json(Headers({"accept": accept}))


def test_without_the_header_neither_json_nor_an_event_stream_is_preferred() -> None:
    assert not prefers_json(Headers({}))
    assert not names_event_stream(Headers({}))


def test_several_accept_headers_form_one_list() -> None:
    assert not prefers_json(Headers(raw=[(b"accept", b"application/json"), (b"accept", b"text/event-stream")]))


def test_an_event_stream_must_be_named() -> None:
    assert names_event_stream(Headers({"accept": "application/json, text/event-stream"}))
    assert not names_event_stream(Headers({"accept": "text/event-stream;q=0"}))
    assert not names_event_stream(Headers({"accept": "text/*"}))
