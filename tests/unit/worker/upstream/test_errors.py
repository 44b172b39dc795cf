"""Upstream errors: their conversion."""

from __future__ import annotations

import email.utils
import time
from typing import Any

import msgspec
import pytest

from worker.upstream.errors import from_response, from_stream_error

KEY = "sk-very-secret"
OWN = {"message": "No.", "type": "some_type", "param": "messages", "code": "some_code"}


def test_half_a_surrogate_pair_in_an_error_is_replaced() -> None:
    """JSON can contain it as an escape. Stored unchanged, it would make the generation unreadable."""
    error = from_response(400, {}, {"message": "bad \ud83c", "code": "c\udc00"}, (KEY,))
    assert msgspec.json.encode(error.to_json())
    assert error.message == "bad ?"


@pytest.mark.parametrize("status", [400, 403, 404, 413, 422])
def test_an_error_about_the_request_is_passed_on(status: int) -> None:
    error = from_response(status, {}, OWN, (KEY,))
    assert error.to_json() == {**OWN, "status": status}
    assert not error.retryable
    assert not error.restartable


@pytest.mark.parametrize(
    ("status", "code", "retryable", "restartable"),
    [
        (401, "upstream_auth", False, False),
        (429, "upstream_rate_limited", True, True),
        (408, "upstream_error", True, True),
        (451, "upstream_error", False, True),
        (500, "upstream_error", True, True),
        (503, "upstream_error", True, True),
        (529, "upstream_error", True, True),
        (307, "bad_upstream_response", False, True),
    ],
)
def test_other_statuses_are_mapped_to_our_codes(status: int, code: str, retryable: bool, restartable: bool) -> None:
    error = from_response(status, {}, OWN, (KEY,))
    assert (error.code, error.retryable, error.restartable) == (code, retryable, restartable)


def test_an_insufficient_quota_is_not_retried() -> None:
    assert not from_response(429, {}, {**OWN, "code": "insufficient_quota"}, (KEY,)).retryable


@pytest.mark.parametrize("body", [None, "<html>", [], {}, {"error": None}, {"message": None}, {"error": "No."}])
def test_error_bodies_of_any_shape_are_read(body: Any) -> None:
    for status in (400, 401, 429, 500):
        assert from_response(status, {}, body, (KEY,)).message


@pytest.mark.parametrize("error", ["No.", {"message": "No."}, {"message": "No.", "code": 400}, [], 5])
def test_error_frames_of_any_shape_are_read(error: Any) -> None:
    converted = from_stream_error(error, (KEY,)).to_json()
    assert converted["message"]
    assert converted["type"] == "server_error"
    assert isinstance(converted["code"], str)


@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_no_error_contains_the_api_key(status: int) -> None:
    leaky = {"message": f"Incorrect API key: {KEY}", "code": KEY, "type": KEY, "param": KEY}
    assert KEY not in repr(from_response(status, {}, leaky, (KEY,)).to_json())
    assert KEY not in repr(from_stream_error(leaky, (KEY,)).to_json())


def test_the_representation_of_an_error_omits_its_message() -> None:
    assert "No." not in repr(from_response(400, {}, OWN, (KEY,)))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "nan?"}, None),
    ],
)
def test_every_form_of_retry_after_is_parsed(headers: dict[str, str], seconds: float | None) -> None:
    assert from_response(429, headers, OWN, (KEY,)).retry_after == seconds


def test_retry_after_can_be_a_future_date() -> None:
    date = email.utils.formatdate(time.time() + 600, usegmt=True)
    assert from_response(429, {"retry-after": date}, OWN, (KEY,)).retry_after == pytest.approx(600, abs=60)
