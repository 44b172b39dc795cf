"""What an open gateway serves, and what it refuses: by the host it was asked for, the page that asks, and the body."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from api.middleware.guard import STATUS, Policy, refusal
from broker.settings.settings import Settings

LOCAL = Policy.of(Settings(allowed_hosts="tokencast.example,*.team.example", cors_origins="https://app.example"))  # type: ignore[arg-type]
ON_PURPOSE = Policy.of(Settings(allow_open=True, HOST="0.0.0.0", allowed_hosts="tokencast.example"))  # type: ignore[call-arg, arg-type]
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


def code_of(policy: Policy, method: str = "GET", path: str = "/v1/generations", **sent: str) -> str | None:
    """The code of the refusal; None where it is served. Headers as keywords; `host` is localhost:8000 if not said."""
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
def test_its_own_names_are_answered(host: str, agent: str) -> None:
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
def test_any_other_name_is_refused(host: str, agent: str) -> None:
    assert code_of(LOCAL, host=host, user_agent=agent) == "host_not_allowed"


def test_a_host_that_is_given_twice_is_refused() -> None:
    twice = Headers(raw=[(b"host", b"localhost"), (b"host", b"evil.example")])
    assert refusal(LOCAL, "GET", "/", twice) is not None


def test_no_browser_leaves_the_host_out() -> None:
    assert refusal(LOCAL, "GET", "/healthz", Headers({})) is None
    assert refusal(LOCAL, "GET", "/healthz", Headers({"user-agent": FIREFOX})) is not None


@pytest.mark.parametrize("host", ["gateway:8000", "api", "tokencast.svc.cluster.local", "10.1.2.3:8000", "weird~name"])
def test_opened_on_purpose_it_answers_programs_by_any_name(host: str) -> None:
    assert code_of(ON_PURPOSE, host=host) is None
    assert code_of(ON_PURPOSE, host=host, user_agent="python-httpx/0.28.1", sec_fetch_mode="cors") is None


@pytest.mark.parametrize("host", ["10.1.2.3:8000", "[2001:db8::5]:8000", "tokencast.example", "localhost:8000"])
def test_opened_on_purpose_it_answers_browsers_by_addresses_and_listed_names(host: str) -> None:
    own = {"origin": f"http://{host}", "content_type": "application/json", "content_length": "9"}
    assert code_of(ON_PURPOSE, host=host, user_agent=FIREFOX) is None
    assert code_of(ON_PURPOSE, "POST", host=host, **own) is None


@pytest.mark.parametrize(
    "marks",
    [{"user_agent": FIREFOX}, {"origin": "http://evil.example:8000"}, {"sec_fetch_site": "same-origin"}],
    ids=["agent", "origin", "site"],
)
def test_opened_on_purpose_it_answers_no_browser_by_any_other_name(marks: dict[str, str]) -> None:
    """DNS rebinding: to the browser the attacker's page and the gateway are one origin."""
    assert code_of(ON_PURPOSE, host="evil.example:8000", **marks) == "host_not_allowed"


# --- the page ------------------------------------------------------------------------------------------------


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
def test_its_own_pages_and_listed_ones_are_served(host: str, sent: dict[str, str], method: str) -> None:
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
def test_no_other_page_is(sent: dict[str, str], method: str) -> None:
    assert code_of(LOCAL, method, **sent) == "origin_not_allowed"


def test_an_origin_that_is_given_twice_is_refused() -> None:
    twice = [(b"host", b"localhost"), (b"origin", b"https://app.example"), (b"origin", b"https://evil.example")]
    assert refusal(LOCAL, "GET", "/", Headers(raw=twice)) is not None


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/static/app.js"])
def test_a_link_to_its_pages_may_be_followed_from_anywhere(path: str) -> None:
    link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert code_of(LOCAL, path=path, **link) is None
    assert code_of(LOCAL, path=path, **{**link, "sec_fetch_dest": "iframe"}) == "origin_not_allowed"
    assert code_of(LOCAL, path=path, **{**link, "sec_fetch_mode": "no-cors"}) == "origin_not_allowed"
    assert code_of(LOCAL, "POST", path=path, **link, origin="https://evil.example") == "origin_not_allowed"
    assert code_of(LOCAL, path=path, **link, host="evil.example") == "host_not_allowed"


def test_what_leads_nowhere_is_left_to_the_router() -> None:
    assert code_of(LOCAL, path="/v1/generations/", host="evil.example", origin="https://evil.example") is None
    assert code_of(LOCAL, path="/", host="evil.example") == "host_not_allowed"


def test_where_every_origin_is_listed_the_host_still_counts() -> None:
    """A page of a name that DNS has pointed here is let in by no list."""
    everybody = Policy.of(Settings(cors_origins="*"))  # type: ignore[arg-type]
    for origin in ("https://evil.example", "null"):
        assert code_of(everybody, "POST", origin=origin, sec_fetch_site="cross-site") is None
    assert code_of(everybody, origin="http://evil.example", host="evil.example") == "host_not_allowed"
    assert code_of(everybody, sec_fetch_site="cross-site") == "origin_not_allowed"


HEADERS = ("host", "origin", "sec-fetch-site", "sec-fetch-mode", "user-agent", "content-type", "content-length")
PARTS = st.sampled_from(["localhost", "http://", "[::1]", ":8000", ".", "*", "@", "null", "tokencast.example"])
VALUES = st.binary(max_size=20) | st.lists(PARTS).map(lambda parts: "".join(parts).encode())


@given(st.lists(st.tuples(st.sampled_from(HEADERS), VALUES)), st.sampled_from(["GET", "POST", "x"]), st.text())
def test_no_header_crashes_the_guard(headers: list[tuple[str, bytes]], method: str, path: str) -> None:
    raw = [(name.encode(), value) for name, value in headers]
    for policy in (LOCAL, ON_PURPOSE):
        found = refusal(policy, method, path, Headers(raw=raw))
        assert found is None or json.loads(found.body)["error"]["code"] in STATUS


# --- the body ------------------------------------------------------------------------------------------------

SIMPLE = ["text/plain", "text/plain;charset=UTF-8", "multipart/form-data; boundary=x", "application/xml", "x"]
JSON = ["application/json", "application/json; charset=utf-8", "Application/JSON", "text/json", "application/a+json"]
OWN = {"origin": "http://localhost:8000"}


@pytest.mark.parametrize("length", [{"content_length": "9"}, {"transfer_encoding": "chunked"}], ids=["whole", "chunks"])
@pytest.mark.parametrize("page", [{}, OWN, {"origin": "https://app.example"}], ids=["program", "own", "listed"])
@pytest.mark.parametrize("path", ["/v1/generations", "/v1/chat/completions"])
def test_a_body_is_json_by_its_type(length: dict[str, str], page: dict[str, str], path: str) -> None:
    for kind in JSON:
        assert code_of(LOCAL, "POST", path, content_type=kind, **length, **page) is None, kind
    for kind in SIMPLE:
        assert code_of(LOCAL, "POST", path, content_type=kind, **length, **page) == "unsupported_media_type", kind


@pytest.mark.parametrize("kind", [{}, {"content_type": "application/x-www-form-urlencoded"}], ids=["none", "form"])
def test_what_curl_says_of_a_body_is_taken_from_programs_alone(kind: dict[str, str]) -> None:
    """Forms and beacons of a page say it too."""
    assert code_of(LOCAL, "POST", content_length="9", **kind) is None
    for browser in (OWN, {"sec_fetch_site": "same-origin"}, {"user_agent": FIREFOX}):
        assert code_of(LOCAL, "POST", content_length="9", **kind, **browser) == "unsupported_media_type"


def test_no_body_needs_no_type() -> None:
    for length in ({}, {"content_length": "0"}):
        assert code_of(LOCAL, "POST", "/v1/generations/gen_x/cancel", **length, **OWN) is None
        assert code_of(LOCAL, "DELETE", "/v1/generations/gen_x", **length, **OWN) is None
