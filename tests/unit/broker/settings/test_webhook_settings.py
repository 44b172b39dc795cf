"""The settings of webhooks."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from broker.errors import InvalidRequest, Misconfigured
from broker.request.options import WebhookOptions
from broker.settings.loading import load, variables
from broker.settings.settings import Settings

SECRET = "whsec_" + base64.b64encode(bytes(range(24))).decode()
NEXT = "whsec_" + base64.b64encode(bytes(range(64))).decode()
ANYWHERE = WebhookOptions("https://hooks.example.com/x")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, _, _ in variables():
        monkeypatch.delenv(name, raising=False)


def test_a_default_url_and_two_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n{NEXT}\n")
    monkeypatch.setenv("TOKENCAST_WEBHOOK_SECRET_FILE", str(tmp_path / "secret"))
    monkeypatch.setenv("TOKENCAST_WEBHOOK_URL", "https://hooks.example.com/x?key=Hunter2")
    settings = load(Settings)
    assert settings.webhook_secret == (SECRET, NEXT)
    assert json.loads(settings.default_webhook) == {
        "url": "https://hooks.example.com/x?key=Hunter2",
        "events": ["completed", "failed", "cancelled"],
    }
    assert "Hunter2" not in repr(settings)
    assert SECRET not in repr(settings)
    settings.check_webhook(ANYWHERE)
    settings.check_webhook(None)


def test_a_url_without_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENCAST_WEBHOOK_URL", "https://hooks.example.com/")
    with pytest.raises(Misconfigured, match="TOKENCAST_WEBHOOK_URL: needs TOKENCAST_WEBHOOK_SECRET"):
        load(Settings)


@pytest.mark.parametrize(
    "secret", ["Hunter2", "whsec_", "whsec_c2hvcnQ=", "whsec_not base64!", SECRET.removeprefix("whsec_"), f"{SECRET},x"]
)
def test_a_secret_that_is_none(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv("TOKENCAST_WEBHOOK_SECRET", secret)
    with pytest.raises(Misconfigured, match="TOKENCAST_WEBHOOK_SECRET: must be `whsec_`") as caught:
        load(Settings)
    assert "Hunter2" not in caught.value.message


def test_a_private_default_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENCAST_WEBHOOK_SECRET", SECRET)
    monkeypatch.setenv("TOKENCAST_WEBHOOK_URL", "http://app.local:8000/hook")
    with pytest.raises(Misconfigured, match="TOKENCAST_WEBHOOK_URL: must begin with https://, unless"):
        load(Settings)
    monkeypatch.setenv("TOKENCAST_WEBHOOK_ALLOW_PRIVATE", "1")
    assert load(Settings).webhook_url == "http://app.local:8000/hook"


def test_a_request_that_names_a_webhook(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(Settings).default_webhook == b""
    with pytest.raises(InvalidRequest, match="TOKENCAST_WEBHOOK_SECRET") as caught:
        load(Settings).check_webhook(ANYWHERE)
    assert caught.value.param == "tokencast.webhook"
    monkeypatch.setenv("TOKENCAST_WEBHOOK_SECRET", SECRET)
    with pytest.raises(InvalidRequest, match="private address") as caught:
        load(Settings).check_webhook(WebhookOptions("https://169.254.169.254/"))
    assert caught.value.param == "tokencast.webhook.url"
