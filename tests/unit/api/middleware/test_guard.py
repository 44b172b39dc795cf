"""Guard of a gateway without API keys: the requests that it serves and refuses, by host, origin and body."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from api.middleware.guard import STATUS, Policy, refusal
from broker.settings.settings import Settings

LOCAL = Policy.of(Settings(allowed_hosts="tokencast.example,*.team.example", cors_origins="https://app.example"))  # type: ignore[arg-type]
ALLOW_OPEN = Policy.of(Settings(allow_open=True, HOST="0.0.0.0", allowed_hosts="tokencast.example"))  # type: ignore[call-arg, arg-type]
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


def code_of(policy: Policy, method: str = "GET", path: str = "/v1/generations", **sent: str) -> str | None:
    """The error code of the refusal, or None if the request is served. Headers are keywords; `host` has a default."""
    headers = {"host": "localhost:8000", **{name.replace("_", "-"): value for name, value in sent.items()}}
    found = refusal(policy, method, path, Headers(headers))
    return None if found is None else json.loads(found.body)["error"]["code"]


# --- the host ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "localhost.",
        "127.0.0.1:8000",
        "127.8.9.10",
        "[::1]:8000",
        "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]:8000",
        "tokencast.example",
        "Tokencast.Example:443",
        "anna.team.example",
        "a.b.team.example:8443",
    ],
)
@pytest.mark.parametrize("agent", ["curl/8.14.1", FIREFOX])
def test_own_and_allowed_hosts_are_served(host: str, agent: str) -> None:
    assert code_of(LOCAL, host=host, user_agent=agent) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "team.example",
        "evilteam.example",
        "192.168.1.5:8000",
        "0.0.0.0:8000",
        "[::2]",
        "2130706433",
        "127.1",
        "localhost:8000, evil.example",
        "localhost:8000@evil.example",
        "user@localhost",
        "localhost:99999",
        "[::1",
        "",
        " ",
    ],
)
@pytest.mark.parametrize("agent", ["curl/8.14.1", FIREFOX])
def test_other_hosts_are_refused(host: str, agent: str) -> None:
    assert code_of(LOCAL, host=host, user_agent=agent) == "host_not_allowed"


def test_a_duplicate_host_header_is_refused() -> None:
    twice = Headers(raw=[(b"host", b"localhost"), (b"host", b"evil.example")])
    assert refusal(LOCAL, "GET", "/", twice) is not None


def test_a_missing_host_is_refused_only_from_a_browser() -> None:
    assert refusal(LOCAL, "GET", "/healthz", Headers({})) is None
    assert refusal(LOCAL, "GET", "/healthz", Headers({"user-agent": FIREFOX})) is not None


@pytest.mark.parametrize("host", ["gateway:8000", "api", "tokencast.svc.cluster.local", "10.1.2.3:8000", "weird~name"])
def test_allow_open_serves_programs_under_any_host(host: str) -> None:
    assert code_of(ALLOW_OPEN, host=host) is None
    assert code_of(ALLOW_OPEN, host=host, user_agent="python-httpx/0.28.1", sec_fetch_mode="cors") is None


@pytest.mark.parametrize("host", ["10.1.2.3:8000", "[2001:db8::5]:8000", "tokencast.example", "localhost:8000"])
def test_allow_open_serves_browsers_under_addresses_and_listed_hosts(host: str) -> None:
    own = {"origin": f"http://{host}", "content_type": "application/json", "content_length": "9"}
    assert code_of(ALLOW_OPEN, host=host, user_agent=FIREFOX) is None
    assert code_of(ALLOW_OPEN, "POST", host=host, **own) is None


@pytest.mark.parametrize(
    "marks",
    [{"user_agent": FIREFOX}, {"origin": "http://evil.example:8000"}, {"sec_fetch_site": "same-origin"}],
    ids=["agent", "origin", "site"],
)
def test_allow_open_refuses_browsers_under_other_hosts(marks: dict[str, str]) -> None:
    """DNS rebinding: for the browser, the attacker's page and the gateway have the same origin."""
    assert code_of(ALLOW_OPEN, host="evil.example:8000", **marks) == "host_not_allowed"


# --- the origin ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "sent"),
    [
        ("localhost:8000", {"origin": "http://localhost:8000"}),
        ("localhost:8000", {"origin": "http://localhost:8000", "sec_fetch_site": "same-origin"}),
        ("localhost:8000", {"sec_fetch_site": "same-origin"}),
        ("localhost:8000", {"sec_fetch_site": "none", "sec_fetch_mode": "navigate"}),
        ("[::1]:8000", {"origin": "http://[::1]:8000"}),
        ("localhost", {"origin": "http://localhost"}),
        ("tokencast.example", {"origin": "https://tokencast.example"}),
        ("tokencast.example:443", {"origin": "https://tokencast.example"}),
        ("tokencast.example", {"origin": "https://tokencast.example:8443", "sec_fetch_site": "same-origin"}),
        ("localhost:8000", {"origin": "https://app.example"}),
        ("localhost:8000", {"origin": "https://app.example", "sec_fetch_site": "cross-site"}),
        ("localhost:8000", {}),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
def test_own_and_listed_origins_are_served(host: str, sent: dict[str, str], method: str) -> None:
    assert code_of(LOCAL, method, host=host, **sent) is None


@pytest.mark.parametrize(
    "sent",
    [
        {"origin": "https://evil.example"},
        {"origin": "https://evil.example", "sec_fetch_site": "cross-site"},
        {"origin": "https://evil.example", "sec_fetch_site": "same-origin"},
        {"origin": "null"},
        {"origin": "null", "sec_fetch_site": "same-origin"},
        {"origin": ""},
        {"origin": "*"},
        {"origin": "http://localhost:3000"},
        {"origin": "http://localhost"},
        {"origin": "http://127.0.0.1:8000"},
        {"origin": "http://localhost:8000", "sec_fetch_site": "same-site"},
        {"origin": "http://localhost:8000.evil.example"},
        {"origin": "http://localhost:8000@evil.example"},
        {"origin": "https://app.example.evil.example"},
        {"origin": "http://app.example"},
        {"origin": "https://app.example:8443"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "anything"},
        {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors", "sec_fetch_dest": "image"},
        {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
def test_other_origins_are_refused(sent: dict[str, str], method: str) -> None:
    assert code_of(LOCAL, method, **sent) == "origin_not_allowed"


def test_a_duplicate_origin_header_is_refused() -> None:
    twice = [(b"host", b"localhost"), (b"origin", b"https://app.example"), (b"origin", b"https://evil.example")]
    assert refusal(LOCAL, "GET", "/", Headers(raw=twice)) is not None


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/static/app.js"])
def test_a_link_from_any_site_to_a_page_is_served(path: str) -> None:
    link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert code_of(LOCAL, path=path, **link) is None
    assert code_of(LOCAL, path=path, **{**link, "sec_fetch_dest": "iframe"}) == "origin_not_allowed"
    assert code_of(LOCAL, path=path, **{**link, "sec_fetch_mode": "no-cors"}) == "origin_not_allowed"
    assert code_of(LOCAL, "POST", path=path, **link, origin="https://evil.example") == "origin_not_allowed"
    assert code_of(LOCAL, path=path, **link, host="evil.example") == "host_not_allowed"


def test_unknown_paths_are_left_to_the_router() -> None:
    assert code_of(LOCAL, path="/v1/generations/", host="evil.example", origin="https://evil.example") is None
    assert code_of(LOCAL, path="/", host="evil.example") == "host_not_allowed"


def test_the_host_is_checked_even_if_every_origin_is_listed() -> None:
    """No list of origins admits a page whose host name was rebound to the gateway."""
    any_origin = Policy.of(Settings(cors_origins="*"))  # type: ignore[arg-type]
    for origin in ("https://evil.example", "null"):
        assert code_of(any_origin, "POST", origin=origin, sec_fetch_site="cross-site") is None
    assert code_of(any_origin, origin="http://evil.example", host="evil.example") == "host_not_allowed"
    assert code_of(any_origin, sec_fetch_site="cross-site") == "origin_not_allowed"


HEADERS = ("host", "origin", "sec-fetch-site", "sec-fetch-mode", "user-agent", "content-type", "content-length")
PARTS = st.sampled_from(["localhost", "http://", "[::1]", ":8000", ".", "*", "@", "null", "tokencast.example"])
VALUES = st.binary(max_size=20) | st.lists(PARTS).map(lambda parts: "".join(parts).encode())


@given(st.lists(st.tuples(st.sampled_from(HEADERS), VALUES)), st.sampled_from(["GET", "POST", "x"]), st.text())
def test_no_header_crashes_the_guard(headers: list[tuple[str, bytes]], method: str, path: str) -> None:
    raw = [(name.encode(), value) for name, value in headers]
    for policy in (LOCAL, ALLOW_OPEN):
        found = refusal(policy, method, path, Headers(raw=raw))
        assert found is None or json.loads(found.body)["error"]["code"] in STATUS


# --- the body ------------------------------------------------------------------------------------------------

SIMPLE = ["text/plain", "text/plain;charset=UTF-8", "multipart/form-data; boundary=x", "application/xml", "x"]
JSON = ["application/json", "application/json; charset=utf-8", "Application/JSON", "text/json", "application/a+json"]
OWN = {"origin": "http://localhost:8000"}


@pytest.mark.parametrize("length", [{"content_length": "9"}, {"transfer_encoding": "chunked"}], ids=["whole", "chunks"])
@pytest.mark.parametrize("page", [{}, OWN, {"origin": "https://app.example"}], ids=["program", "own", "listed"])
@pytest.mark.parametrize("path", ["/v1/generations", "/v1/chat/completions"])
def test_a_body_must_have_a_json_content_type(length: dict[str, str], page: dict[str, str], path: str) -> None:
    for kind in JSON:
        assert code_of(LOCAL, "POST", path, content_type=kind, **length, **page) is None, kind
    for kind in SIMPLE:
        assert code_of(LOCAL, "POST", path, content_type=kind, **length, **page) == "unsupported_media_type", kind


@pytest.mark.parametrize("kind", [{}, {"content_type": "application/x-www-form-urlencoded"}], ids=["none", "form"])
def test_the_default_content_type_of_curl_is_accepted_only_from_programs(kind: dict[str, str]) -> None:
    """Forms and beacons in a page send it too."""
    assert code_of(LOCAL, "POST", content_length="9", **kind) is None
    for browser in (OWN, {"sec_fetch_site": "same-origin"}, {"user_agent": FIREFOX}):
        assert code_of(LOCAL, "POST", content_length="9", **kind, **browser) == "unsupported_media_type"


def test_a_request_without_a_body_needs_no_content_type() -> None:
    for length in ({}, {"content_length": "0"}):
        assert code_of(LOCAL, "POST", "/v1/generations/gen_x/cancel", **length, **OWN) is None
        assert code_of(LOCAL, "DELETE", "/v1/generations/gen_x", **length, **OWN) is None
