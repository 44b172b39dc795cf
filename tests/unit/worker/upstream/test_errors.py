"""Upstream errors: their conversion."""

from __future__ import annotations

import email.utils
import errno
import socket
import time
from typing import Any

import aiohttp
import httpx2
import msgspec
import pytest
from aiohttp.client_reqrep import ConnectionKey

from worker.upstream.client import connection_failure
from worker.upstream.errors import UpstreamError, from_broken_connection, from_response, from_stream_error
from worker.upstream.rate_limits import RateLimit

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
        ({"retry-after-ms": "nan", "retry-after": "9"}, 9.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e9"}, None),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": "99999999"}, 604800.0),
        ({"retry-after-ms": "0"}, 0.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m30.5s"}, 90.5),
        ({"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "1m30.5s"}, None),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "2s",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "6m0s",
            },
            360.0,
        ),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s", "retry-after": "3"}, 3.0),
    ],
)
def test_every_form_of_retry_after_is_parsed(headers: dict[str, str], seconds: float | None) -> None:
    assert from_response(429, headers, OWN, (KEY,)).retry_after == seconds


def test_retry_after_can_be_a_future_date() -> None:
    date = email.utils.formatdate(time.time() + 600, usegmt=True)
    assert from_response(429, {"retry-after": date}, OWN, (KEY,)).retry_after == pytest.approx(600, abs=60)


@pytest.mark.parametrize(
    ("status", "headers", "body", "outcome"),
    [
        (429, {}, {}, "busy"),
        (429, {}, {"error": {"type": "insufficient_quota"}}, "denied"),
        (429, {}, {"error": {"code": "billing_hard_limit_reached"}}, "denied"),
        (529, {}, {}, "busy"),
        (503, {}, {}, "fail"),
        (503, {"retry-after": "20"}, {}, "busy"),
        (503, {"retry-after-ms": "20"}, {}, "busy"),
        (503, {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1s"}, {}, "busy"),
        (500, {"retry-after": "20"}, {}, "fail"),
        (502, {}, {}, "fail"),
        (504, {}, {}, "fail"),
        (408, {}, {}, "fail"),
        (307, {}, {}, "fail"),
        (401, {}, {}, "denied"),
        (402, {}, {}, "denied"),
        (403, {}, {"error": {"message": "This key may not use the model."}}, "denied"),
        (403, {}, {"error": {"message": "Your input was flagged by moderation."}}, "request"),
        *((status, {}, {}, "request") for status in (400, 404, 413, 422, 451)),
    ],
)
def test_what_a_refusal_means_for_the_upstream(status: int, headers: dict[str, str], body: Any, outcome: str) -> None:
    error = from_response(status, headers, body, (KEY,))
    assert error.outcome == outcome
    assert "outcome" not in error.to_json()


@pytest.mark.parametrize(
    ("reported", "outcome"),
    [
        ({"message": "Slow down.", "code": "rate_limit_exceeded"}, "busy"),
        ({"message": "Slow down.", "type": "overloaded_error"}, "busy"),
        ({"message": "Slow down.", "code": 429}, "busy"),
        ({"message": "Slow down.", "code": "503"}, "fail"),
        ({"message": "No credit.", "code": 402}, "denied"),
        ({"message": "No credit.", "code": "insufficient_quota"}, "denied"),
        ({"message": "No.", "code": "invalid_api_key", "type": "invalid_request_error"}, "denied"),
        ({"message": "Too long.", "type": "invalid_request_error"}, "request"),
        ({"message": "Too long.", "code": 400}, "request"),
        ({"message": "Sorry.", "code": "sim_error"}, "fail"),
        ({"message": "Sorry.", "code": 4290}, "fail"),
        ("Sorry.", "fail"),
        ([], "fail"),
    ],
)
def test_what_an_error_in_the_stream_means_for_the_upstream(reported: Any, outcome: str) -> None:
    assert from_stream_error(reported, (KEY,)).outcome == outcome


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (UpstreamError("upstream_unreachable", "."), "fail"),
        (UpstreamError("upstream_timeout", "."), "fail"),
        (UpstreamError("bad_upstream_response", "."), "fail"),
        (from_broken_connection(started=False), "fail"),
        (from_broken_connection(started=True), "fail"),
        (UpstreamError("upstream_auth", "."), "denied"),
        (UpstreamError("model_not_found", ".", status=404), "request"),
        *((UpstreamError(code, "."), "request") for code in ("internal_error", "output_too_large", "timeout")),
    ],
    ids=lambda value: value if isinstance(value, str) else value.code,
)
def test_what_a_failure_of_ours_means_for_the_upstream(error: UpstreamError, outcome: str) -> None:
    assert error.outcome == outcome


def test_a_refusal_tells_the_rate_limits() -> None:
    headers = {"x-ratelimit-limit-requests": "500", "x-ratelimit-remaining-requests": "0"}
    limits = from_response(429, headers, {}, (KEY,)).rate_limits
    assert limits is not None
    assert limits.requests == RateLimit(500, 0)
    assert from_response(429, {}, {}, (KEY,)).rate_limits is None


SERVER = ConnectionKey("upstream.example", 80, False, True, None, None, None)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (aiohttp.ClientConnectorDNSError(SERVER, socket.gaierror(socket.EAI_NONAME, "unknown")), "dns"),
        (aiohttp.ClientConnectorError(SERVER, ConnectionRefusedError(errno.ECONNREFUSED, "refused")), "refused"),
        (aiohttp.ClientConnectorError(SERVER, OSError(errno.EHOSTUNREACH, "no route")), "unreachable"),
        (aiohttp.ClientConnectorError(SERVER, ConnectionResetError(errno.ECONNRESET, "reset")), "reset"),
        (aiohttp.ConnectionTimeoutError(), "timeout"),
    ],
)
def test_a_connection_error_has_a_class(error: Exception, cause: str) -> None:
    """Whatever the transport makes of it: a timeout, of most of them."""
    mapped = httpx2.ConnectTimeout("Cannot connect")
    mapped.__cause__ = error
    failure = connection_failure(mapped)
    assert failure is not None
    assert (failure.code, failure.cause) == ("upstream_unreachable", cause)
    assert failure.to_json().keys() == {"message", "type", "code"}
