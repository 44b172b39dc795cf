"""Settings from the environment, and their table in docs/reference.md."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from broker.errors import Misconfigured, ModelNotFound
from broker.runtime.environment import environment
from broker.settings.client_settings import ClientSettings
from broker.settings.loading import load, variables
from broker.settings.secret_files import SECRETS
from broker.settings.settings import Settings
from tests.support import ROOT


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, _, _ in variables():
        monkeypatch.delenv(name, raising=False)


def test_the_reference_lists_every_variable_with_its_default() -> None:
    reference = (ROOT / "docs/reference.md").read_text("utf-8").partition("\n## Settings\n")[2]
    table = [line for line in reference.splitlines() if line.startswith("| `")]
    rows = {line.split("|")[1].strip().strip("`"): line for line in table}
    for name, default, description in variables():
        assert rows.get(name) == f"| `{name}` | {f'`{default}`' if default else ''} | {description} |".replace(
            "|  |", "| |"
        )


def test_a_wrong_setting_is_named_and_its_value_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "s3cret")
    monkeypatch.setenv("TOKENCAST_LEASE", "0")
    with pytest.raises(Misconfigured) as caught:
        load(Settings)
    assert "PORT:" in caught.value.message
    assert "TOKENCAST_LEASE:" in caught.value.message
    assert "s3cret" not in caught.value.message


def test_secrets_can_be_read_from_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("unix:///from-file\n")
    for name in ("OPENAI_API_KEY", "TOKENCAST_API_KEY", "REDIS_URL"):
        monkeypatch.setenv(f"{name}_FILE", str(tmp_path / "key"))
    settings = load(Settings)
    assert (settings.openai_api_key, settings.redis_url) == ("unix:///from-file", "unix:///from-file")
    assert load(ClientSettings).api_key == "unix:///from-file"
    monkeypatch.setenv("OPENAI_API_KEY_FILE", str(tmp_path / "missing"))
    with pytest.raises(Misconfigured, match="OPENAI_API_KEY_FILE"):
        load(Settings)


@pytest.mark.parametrize("name", [*SECRETS, "A_KEY"])
def test_a_secret_set_twice_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """Whichever of the two took precedence, some operators would expect the other."""
    upstreams = '[{"name":"a","base_url":"http://a/v1","api_key_env":"A_KEY"}]'
    monkeypatch.setenv("TOKENCAST_UPSTREAMS", upstreams)
    (tmp_path / "secret").write_text("s3cret")
    monkeypatch.setenv(name, "s3cret")
    monkeypatch.setenv(f"{name}_FILE", str(tmp_path / "secret"))
    with pytest.raises(Misconfigured) as caught:
        _ = load(Settings).all_upstreams() if name != "TOKENCAST_API_KEY" else load(ClientSettings)
    assert f"{name} and {name}_FILE are both set" in caught.value.message
    assert "s3cret" not in caught.value.message


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff"])
@pytest.mark.parametrize("name", ["TOKENCAST_API_KEYS", "OPENAI_API_KEY"])
def test_an_empty_secret_file_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, content: bytes
) -> None:
    """Treated as "not set", it would open the gateway to everybody."""
    (tmp_path / "secret").write_bytes(content)
    monkeypatch.setenv(f"{name}_FILE", str(tmp_path / "secret"))
    with pytest.raises(Misconfigured, match=f"{name}_FILE"):
        load(Settings)


def test_an_empty_key_list_does_not_open_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENCAST_API_KEYS", " , ")
    with pytest.raises(Misconfigured, match="TOKENCAST_API_KEYS"):
        load(Settings)


def test_a_key_file_can_have_one_key_per_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one, other = "a" * 64, "b" * 64
    (tmp_path / "keys").write_text(f"anna:{one}\nben:{other},\n")
    monkeypatch.setenv("TOKENCAST_API_KEYS_FILE", str(tmp_path / "keys"))
    assert load(Settings).tenants == {one: "anna", other: "ben"}


def test_log_levels_may_be_in_capitals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENCAST_LOG_LEVEL", "WARNING")
    assert load(Settings).log_level == "warning"
    monkeypatch.setenv("TOKENCAST_LOG_LEVEL", "loud")
    with pytest.raises(Misconfigured, match="TOKENCAST_LOG_LEVEL"):
        load(Settings)


def test_explicit_variables_of_a_child_process_take_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also over a secret in a file: both together would be an error in the child process."""
    monkeypatch.setenv("REDIS_URL_FILE", "/run/secrets/redis")
    monkeypatch.setenv("OPENAI_API_KEY_FILE", "/run/secrets/key")
    given = environment(REDIS_URL="redis://127.0.0.1/0")
    assert (given["REDIS_URL"], given["OPENAI_API_KEY_FILE"]) == ("redis://127.0.0.1/0", "/run/secrets/key")
    assert "REDIS_URL_FILE" not in given


def test_the_representation_of_settings_contains_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.setenv(
            name, "redis://:s3cret-s3cret-s3cret@127.0.0.1/0" if "URL" in name else "s3cret-s3cret-s3cret"
        )
    secret = "whsec_" + "s3cret00" * 4
    monkeypatch.setenv("TOKENCAST_WEBHOOK_SECRET", secret)
    own = {"webhook": {"url": "https://example.com/s3cret"}, "webhook_secret": secret}
    monkeypatch.setenv("TOKENCAST_TENANTS", json.dumps({"anna": own}))
    for shown in (load(Settings), load(Settings).all_upstreams(), load(ClientSettings)):
        assert "s3cret" not in f"{shown} {shown!r}"


def test_the_model_chooses_the_upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "TOKENCAST_UPSTREAMS",
        '[{"name":"a","base_url":"http://a/v1","api_key_env":"A_KEY","models":["gpt-*"]},'
        '{"name":"b","base_url":"http://b/v1","models":["*-coder"],"usage":false}]',
    )
    monkeypatch.setenv("A_KEY", "ka")
    settings = load(Settings)
    a, b = settings.upstream_for("gpt-5"), settings.upstream_for("gabforge-coder")
    assert (a.name, a.api_key, a.usage) == ("a", "ka", True)
    assert (b.name, b.api_key, b.api_key_env, b.usage) == ("b", None, "OPENAI_API_KEY", False)
    with pytest.raises(ModelNotFound):
        settings.upstream_for("llama")


@pytest.mark.parametrize("keys", ["tenant", "tenant:abc", "te nant:" + "0" * 64, ":" + "0" * 64])
def test_a_malformed_key_list_is_refused(monkeypatch: pytest.MonkeyPatch, keys: str) -> None:
    monkeypatch.setenv("TOKENCAST_API_KEYS", keys)
    with pytest.raises(Misconfigured, match="TOKENCAST_API_KEYS"):
        _ = load(Settings).tenants


def test_a_key_may_have_a_role(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = [digit * 64 for digit in "abc"]
    entries = [f"anna:{digests[0]}", f"anna:{digests[1]}:read", f"ops:{digests[2]}:operator"]
    monkeypatch.setenv("TOKENCAST_API_KEYS", ",".join(entries))
    settings = load(Settings)
    roles = [settings.keys[digest][:2] for digest in digests]
    assert roles == [("anna", "tenant"), ("anna", "read"), ("ops", "operator")]
    assert [settings.keys[digest].entry(digest) for digest in digests] == entries
    assert settings.tenants == dict(zip(digests, ("anna", "anna", "ops"), strict=True))


@pytest.mark.parametrize(
    ("end", "until", "shortest"),
    [
        ("2027-01-31", "2027-02-01T00:00:00+00:00", "2027-01-31"),
        ("2027-01-31T12:30Z", "2027-01-31T12:30:00+00:00", "2027-01-31T12:30:00Z"),
        ("2027-01-31T12:30:05+02:00", "2027-01-31T10:30:05+00:00", "2027-01-31T10:30:05Z"),
    ],
)
def test_a_key_may_have_an_end(monkeypatch: pytest.MonkeyPatch, end: str, until: str, shortest: str) -> None:
    """A date is the last day, UTC."""
    monkeypatch.setenv("TOKENCAST_API_KEYS", f"anna:{'a' * 64}:expires={end},ops:{'b' * 64}:operator:expires={end}")
    anna, ops = load(Settings).keys.values()
    assert anna.expires == ops.expires == datetime.fromisoformat(until).timestamp()
    assert ops.entry("b" * 64) == f"ops:{'b' * 64}:operator:expires={shortest}"


@pytest.mark.parametrize("end", ["", "tomorrow", "2027-13-01", "1", "9999-12-31T00:00-23:59:operator"])
def test_an_invalid_end_of_a_key_is_refused(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setenv("TOKENCAST_API_KEYS", f"anna:{'a' * 64}:expires={end}")
    with pytest.raises(Misconfigured, match="TOKENCAST_API_KEYS: entry 1 has an end that is not"):
        _ = load(Settings).tenants
