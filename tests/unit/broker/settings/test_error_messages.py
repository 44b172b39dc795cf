"""Each wrong value of a setting is reported in one line that names the variable and contains no byte of a secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from api.__main__ import check_open
from broker.errors import Misconfigured
from broker.runtime.environment import environment
from broker.settings.client_settings import ClientSettings
from broker.settings.loading import load, load_for_process, unknown_variables, variables
from broker.settings.secret_files import SECRETS
from broker.settings.settings import Settings

WRONG_NUMBERS = ("", "many", "-1", "1e400", "inf", "nan", "1e300", "9" * 30, "0x10", "1,5")
WRONG = {
    "OPENAI_BASE_URL": (
        "127.0.0.1:11434/v1", "localhost:11434/v1", "http//127.0.0.1/v1", "http:/127.0.0.1/v1", "http:///v1", "http://",
        "http://:8000/v1", "ftp://example.com/v1", "unix:///tmp/socket", "http://exam ple/v1", "http://example/v1 ",
        "http://example/v1\r", "http://example/v1\n", "http://example/v1?key=Hunter2", "http://example/v1#Hunter2",
        "http://u:Hunter2@example/v1", "http://u:Hunter2#x@example/v1", "http://Hunter2@example/v1",
        "http://example:Hunter2/v1", "http://example:99999/v1", "http://example:0/v1", "http://[::1/v1", "http://a..b/v1",
        f"http://{'a' * 70}/v1", "http://-a/v1", "http://exa%6Dple/v1", "http://\udcff/v1",
    ),
    "OPENAI_API_KEY": (
        "Hunter2 ", " Hunter2", "Hunter2\r", "Hunter2\n", "Hunter2\r\n", "Hun\nter2", "Hun ter2", "Hun\tter2",
        "Hunter2é", "Hunter2\x7f", "\ufeffHunter2", "Hunter2\u2028", "Hunter2\udcff", " ", "\t",
    ),
    "TOKENCAST_MODELS": (",", " , \n", "a,\udcff"),
    "TOKENCAST_API_KEYS": (
        "Hunter2", "anna:Hunter2", f"an na:{'0' * 64}", f":{'0' * 64}", f"anna:{'A' * 64}", f"anna:{'0' * 64},ben",
        f"anna:{'0' * 64},ben:{'0' * 64}", " , ", f"anna:{'0' * 64}:Hunter2", f"anna:{'0' * 64}:",
        f"anna:{'0' * 64}:tenant", f"anna:{'0' * 64},anna:{'0' * 64}:read", f"anna:{'0' * 64}:read:operator",
    ),
    "TOKENCAST_SECRET": ("Hunter2", "Hunter2Hunter2Hunter2\n", " Hunter2Hunter2Hunter2", "Hunter2Hunter2\rHunter2"),
    "TOKENCAST_ALLOW_OPEN": ("maybe", "2"),
    "TOKENCAST_LOG": ("xml", "TEXT"),
    "TOKENCAST_METRICS_DIR": ("/nowhere", "/dev/null"),
    "HOST": ("\udcff",),
    "PORT": ("-1", "65536", "http", "80.5"),
    "TOKENCAST_UPSTREAMS": ("Hunter2", "[", "{}", "7", "null", '"Hunter2"', "[1]", "[[]]", "[null]", "[{}]",
                            "[" * 100_000),
}  # fmt: skip
WRONG_FOR_CLIENTS = {
    "TOKENCAST_URL": (*WRONG["OPENAI_BASE_URL"], "http://u:Hunter2#x@127.0.0.1:1", "http://u:Hunter2/x@127.0.0.1:1",
                      "http://u:Hunter2?x@127.0.0.1:1", "http://u:Hunter2@127.0.0.1:1"),
    "TOKENCAST_API_KEY": WRONG["OPENAI_API_KEY"],
}  # fmt: skip
NUMBERS = [name for name, default, _ in variables() if default.isdigit() and name != "PORT"]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, _, _ in variables():
        monkeypatch.delenv(name, raising=False)


def error_message(kind: type[Settings | ClientSettings]) -> str:
    with pytest.raises(Misconfigured) as caught:
        load(ClientSettings) if kind is ClientSettings else load_for_process()
    assert "\n" not in caught.value.message
    assert "Traceback" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_setting_of_a_gateway_or_worker_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    message = error_message(Settings)
    assert message.startswith(name)
    assert "unter2" not in message


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in WRONG_FOR_CLIENTS.items() for value in values],
)
def test_a_wrong_setting_of_a_client_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    message = error_message(ClientSettings)
    assert message.startswith(f"{name}: ")
    assert "unter2" not in message


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", WRONG_NUMBERS)
def test_a_malformed_number_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    if not value:  # as if it were not set
        load_for_process()
        return
    assert error_message(Settings).startswith(f"{name}: ")


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "TOKENCAST_API_KEY", "A_KEY"])
@pytest.mark.parametrize(
    ("content", "right"),
    [(b"sk-1\n", True), (b"sk-1\r\n", True), (b"\xef\xbb\xbfsk-1", True), (b"sk-\r1", False), (b"sk 1", False)],
)
def test_a_key_in_a_file_may_end_with_a_line_break(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, content: bytes, right: bool
) -> None:
    (tmp_path / "key").write_bytes(content)
    monkeypatch.setenv(f"{name}_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("TOKENCAST_UPSTREAMS", '[{"name": "a", "base_url": "http://a/v1", "api_key_env": "A_KEY"}]')
    kind = ClientSettings if name == "TOKENCAST_API_KEY" else Settings
    if not right:
        assert error_message(kind).startswith(f"{name}: ")
    elif kind is ClientSettings:
        assert load(ClientSettings).api_key == "sk-1"
    else:
        settings = load_for_process()
        assert "sk-1" in (settings.openai_api_key, settings.all_upstreams()[0].api_key)


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_given_instead_of_a_file_name_is_not_shown(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"{name}_FILE", "redis://:Hunter2@127.0.0.1/0" if "URL" in name else "Hunter2")
    message = error_message(ClientSettings if name == "TOKENCAST_API_KEY" else Settings)
    assert message.startswith(f"{name}_FILE: No such file or directory")
    assert "unter2" not in message


GOOD = {"name": "a", "base_url": "https://a.example/v1"}
ENTRIES = {
    "[0]: unknown field `base-url`; did you mean `base_url`?": [{"name": "a", "base-url": "https://a/v1"}],
    "[1]: unknown field `frobnicate`": [GOOD, {**GOOD, "name": "b", "frobnicate": 1}],
    "[0].base_url: is missing": [{"name": "a"}],
    "[0].name: is missing": [{"base_url": "https://a/v1"}],
    "[0].name: is not a string": [{**GOOD, "name": 7}],
    "[0].name: must be 1 to 64 printable characters": [{**GOOD, "name": ""}],
    "[0].models: is not a list": [{**GOOD, "models": "gpt-*"}],
    "[0].models[1]: is not a string": [{**GOOD, "models": ["a", 7]}],
    "[0].models: lists no model": [{**GOOD, "models": []}],
    "[0].models.a: is not a string": [{**GOOD, "models": {"a": 7}}],
    "[0].models: renames a model to an empty name": [{**GOOD, "models": {"a": ""}}],
    "[0].max_concurrency: Input should be greater than or equal to 1": [{**GOOD, "max_concurrency": 0}],
    "[0].requests_per_minute: is not a whole number": [{**GOOD, "requests_per_minute": "60"}],
    "[0].tokens_per_minute: is not a whole number": [{**GOOD, "tokens_per_minute": True}],
    "[0].weight: Input should be greater than 0": [{**GOOD, "weight": 0}],
    "[0].weight: is not a number": [{**GOOD, "weight": "heavy"}],
    "[0].idle_timeout: Input should be a finite number": [{**GOOD, "idle_timeout": float("inf")}],
    "[0].limits: Input should be 'upstream' or 'model'": [{**GOOD, "limits": "none"}],
    "[0]: unknown field `max_concurency`; did you mean `max_concurrency`?": [{**GOOD, "max_concurency": 4}],
    "[0].usage: is not true or false": [{**GOOD, "usage": "perhaps"}],
    "[1].base_url: must begin with http:// or https://": [GOOD, {"name": "b", "base_url": "a.example/v1"}],
    "[0].api_key_env: is not the name of an environment variable": [{**GOOD, "api_key_env": "sk-Hunter2"}],
    "[0].api_key_env: is not the name": [{**GOOD, "api_key_env": "gsk_Hunter2"}],
    "[0].headers: is not an object": [{**GOOD, "headers": ["X-A"]}],
    "[0].headers.X-A: is not a string": [{**GOOD, "headers": {"X-A": 7}}],
    "[0].headers: the value of X-A has": [{**GOOD, "headers": {"X-A": "Hunter2\r\nX-B: 1"}}],
    "[0].headers: the value of X-B has": [{**GOOD, "headers": {"X-B": "Hunter2é"}}],
    "[0].headers: the value of X-C has a ${…}": [{**GOOD, "headers": {"X-C": "${hunter2}"}}],
    "[0].headers: contains an invalid header name": [{**GOOD, "headers": {"X A": "1"}}],
    "[0].headers: Content-Length cannot be set": [{**GOOD, "headers": {"Content-Length": "1"}}],
    "[0].headers: X-D is given twice": [{**GOOD, "headers": {"x-d": "1", "X-D": "2"}}],
    "[0]: has an Authorization header and a key": [{**GOOD, "headers": {"authorization": "Basic Hunter2"}}],
    ": two entries have the name 'a'": [GOOD, GOOD],
}


@pytest.mark.parametrize("expected", ENTRIES)
def test_an_error_in_an_upstream_entry_is_reported_with_its_position(
    monkeypatch: pytest.MonkeyPatch, expected: str
) -> None:
    monkeypatch.setenv("TOKENCAST_UPSTREAMS", json.dumps(ENTRIES[expected]))
    message = error_message(Settings)
    assert message.startswith(f"TOKENCAST_UPSTREAMS{expected}")
    assert "unter2" not in message


TENANTS = {
    ".anna: unknown field `runing`; did you mean `running`?": '{"anna": {"runing": 1}}',
    ".anna: unknown field `adaptive`": '{"anna": {"adaptive": true}}',
    ".anna: is not an object": '{"anna": 5}',
    ".anna.running: is not a whole number": '{"anna": {"running": "5"}}',
    ".anna.queued: Input should be greater than or equal to 0": '{"anna": {"queued": -1}}',
    ".anna.weight: Input should be greater than 0": '{"anna": {"weight": 0}}',
    ": must be an object": "[]",
    ": not valid JSON": "{",
    ": the field 'anna' is given twice in one object": '{"anna": {}, "anna": {}}',
    ": the tenant `ana` has no key in TOKENCAST_API_KEYS": '{"ana": {"running": 1}}',
    ": the tenant has no key in TOKENCAST_API_KEYS": '{"an na": {"running": 1}}',
}


@pytest.mark.parametrize("said", TENANTS)
def test_a_mistake_in_a_tenant_is_told_by_its_place(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("TOKENCAST_API_KEYS", f"anna:{'a' * 64}")
    monkeypatch.setenv("TOKENCAST_TENANTS", TENANTS[said])
    assert error_message(Settings).startswith(f"TOKENCAST_TENANTS{said}")


def test_a_worker_without_keys_takes_all_tenants_and_a_gateway_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENCAST_TENANTS", '{"ana": {"running": 1}}')
    settings = load_for_process()
    assert settings.quota_of("ana").running == 1
    with pytest.raises(Misconfigured, match="TOKENCAST_TENANTS: a gateway without TOKENCAST_API_KEYS"):
        check_open(settings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"name": "a",}]', "not valid JSON: Expecting property name enclosed in double quotes at line 1, column 15"),
        ('[\n{"name": "a"\n', "not valid JSON: Expecting ',' delimiter at line 3, column 1"),
        ('[{"name": "a", "name": "b"}]', "the field 'name' is given twice in one object"),
    ],
)
def test_invalid_json_is_reported_with_its_position(monkeypatch: pytest.MonkeyPatch, text: str, expected: str) -> None:
    monkeypatch.setenv("TOKENCAST_UPSTREAMS", text)
    assert error_message(Settings) == f"TOKENCAST_UPSTREAMS: {expected}"


def test_a_wrong_variable_referenced_by_an_upstream_entry_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {**GOOD, "api_key_env": "A_KEY", "headers": {"X-A": "${A_TOKEN}"}}
    monkeypatch.setenv("TOKENCAST_UPSTREAMS", json.dumps([entry]))
    assert load_for_process().all_upstreams()[0].missing == ("A_KEY", "A_TOKEN")
    monkeypatch.setenv("A_KEY", "right")
    monkeypatch.setenv("A_TOKEN", "Hunter2\r")
    message = error_message(Settings)
    assert message.startswith("A_TOKEN: contains a line break")
    assert "unter2" not in message


def test_headers_of_an_upstream_entry_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {"X-Literal": "s3cret-literal", "Authorization": "Basic ${A_LOGIN}", "X-Two": "${A_LOGIN} ${A_LOGIN}"}
    monkeypatch.setenv("TOKENCAST_UPSTREAMS", json.dumps([{**GOOD, "api_key_env": None, "headers": headers}]))
    monkeypatch.setenv("A_LOGIN", "s3cret-login")
    settings = load_for_process()
    upstream = settings.all_upstreams()[0]
    assert dict(upstream.headers) == {
        "X-Literal": "s3cret-literal",
        "Authorization": "Basic s3cret-login",
        "X-Two": "s3cret-login s3cret-login",
    }
    assert {"s3cret-literal", "s3cret-login", "Basic s3cret-login"} <= set(upstream.secrets)
    assert "s3cret" not in f"{settings} {settings!r} {upstream} {upstream!r}"


@pytest.mark.parametrize(
    ("base_url", "missing"),
    [
        (None, ("OPENAI_API_KEY",)),
        ("https://api.openai.com/v1", ("OPENAI_API_KEY",)),
        ("https://API.OpenAI.com:443/v1/", ("OPENAI_API_KEY",)),
        ("http://127.0.0.1:11434/v1", ()),
    ],
)
def test_a_self_hosted_server_needs_no_key(
    monkeypatch: pytest.MonkeyPatch, base_url: str | None, missing: tuple[str, ...]
) -> None:
    if base_url:
        monkeypatch.setenv("OPENAI_BASE_URL", base_url)
    assert load_for_process().all_upstreams()[0].missing == missing
    if base_url:
        monkeypatch.setenv("TOKENCAST_UPSTREAMS", json.dumps([{"name": "a", "base_url": base_url}]))
        assert load_for_process().all_upstreams()[0].missing == missing


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("TOKENCAST_SLOT", "TOKENCAST_SLOT is not a setting; did you mean TOKENCAST_SLOTS?"),
        ("TOKENCAST_APIKEY", "TOKENCAST_APIKEY is not a setting; did you mean TOKENCAST_API_KEY?"),
        ("TOKENCAST_PORT", "TOKENCAST_PORT is not a setting; did you mean PORT?"),
        ("TOKENCAST_REDIS_URL", "TOKENCAST_REDIS_URL is not a setting; did you mean REDIS_URL?"),
        ("TOKENCAST_FROBNICATE", "TOKENCAST_FROBNICATE is not a setting"),
        ("TOKENCAST_API_KEYS_FIEL", "TOKENCAST_API_KEYS_FIEL is not a setting; did you mean TOKENCAST_API_KEYS_FILE?"),
        ("tokencast_slto", "tokencast_slto is not a setting; did you mean TOKENCAST_SLOTS?"),
        ("TOKENCAST_SLOTS_FILE", "TOKENCAST_SLOTS_FILE is ignored: only secrets can be read from files; "
                                 "set TOKENCAST_SLOTS instead"),
        ("OPENAI_BASE_URL_FILE", "OPENAI_BASE_URL_FILE is ignored: only secrets can be read from files; "
                                 "set OPENAI_BASE_URL instead"),
    ],
)  # fmt: skip
def test_an_unknown_variable_is_reported_with_the_most_similar_name(
    monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    monkeypatch.setenv(name, "5")
    assert unknown_variables() == {name: expected}
    assert name not in environment(*unknown_variables())


def test_known_variables_are_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENCAST_UPSTREAMS", json.dumps([{**GOOD, "api_key_env": "TOKENCAST_MY_KEY"}]))
    for name in (
        *(name for name, _, _ in variables() if name != "TOKENCAST_UPSTREAMS"),
        *(f"{name}_FILE" for name in SECRETS),
        "TOKENCAST_MY_KEY", "TOKENCAST_MY_KEY_FILE", "tokencast_slots", "_TOKENCAST_COMPLETE", "TOKENCAST_IMAGE",
        "TOKENCAST_PICTURES", "TOKENCAST_EXAMPLES", "TOKENCAST_TEST_SERVER", "HOST_FILE",
        "TOKENCAST_SERVICE_HOST", "TOKENCAST_GATEWAY_SERVICE_PORT_HTTP", "TOKENCAST_GATEWAY_PORT_8000_TCP_ADDR",
    ):  # fmt: skip
        monkeypatch.setenv(name, "5")
    monkeypatch.setenv("TOKENCAST_PORT", "tcp://10.0.0.1:8000")  # what Kubernetes sets for a service named `tokencast`
    assert unknown_variables() == {}
