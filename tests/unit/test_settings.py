"""The environment, and the README's table of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.errors import Misconfigured, ModelNotFound
from broker.settings import ClientSettings, Settings, load, variables

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, _, _ in variables():
        monkeypatch.delenv(name, raising=False)


def test_the_readme_lists_every_variable_with_its_default() -> None:
    table = [line for line in (ROOT / "README.md").read_text("utf-8").splitlines() if line.startswith("| `")]
    rows = {line.split("|")[1].strip().strip("`"): line for line in table}
    for name, default, description in variables():
        assert rows.get(name) == f"| `{name}` | {f'`{default}`' if default else ''} | {description} |".replace(
            "|  |", "| |"
        )


def test_a_wrong_value_is_named_without_being_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "s3cret")
    monkeypatch.setenv("TOKENCAST_LEASE", "0")
    with pytest.raises(Misconfigured) as caught:
        load(Settings)
    assert "PORT:" in caught.value.message
    assert "TOKENCAST_LEASE:" in caught.value.message
    assert "s3cret" not in caught.value.message


def test_secrets_may_stand_in_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("unix:///from-file\n")
    for name in ("OPENAI_API_KEY", "TOKENCAST_API_KEY", "REDIS_URL"):
        monkeypatch.setenv(f"{name}_FILE", str(tmp_path / "key"))
    settings = load(Settings)
    assert (settings.openai_api_key, settings.redis_url) == ("unix:///from-file", "unix:///from-file")
    assert load(ClientSettings).api_key == "unix:///from-file"
    monkeypatch.setenv("OPENAI_API_KEY_FILE", str(tmp_path / "missing"))
    with pytest.raises(Misconfigured, match="OPENAI_API_KEY_FILE"):
        load(Settings)


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
