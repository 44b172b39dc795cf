"""The settings of webhooks."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest

from broker.errors import InvalidRequest, Misconfigured
from broker.request.options import WebhookOptions
from broker.settings.loading import load, load_for_process, variables
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
    assert json.loads(settings.default_webhook("anna")) == {
        "url": "https://hooks.example.com/x?key=Hunter2",
        "events": ["completed", "failed", "cancelled"],
    }
    assert "Hunter2" not in repr(settings)
    assert SECRET not in repr(settings)
    settings.check_webhook(ANYWHERE, "anna")
    settings.check_webhook(None, "anna")


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
    assert load(Settings).default_webhook("anna") == b""
    with pytest.raises(InvalidRequest, match="TOKENCAST_WEBHOOK_SECRET") as caught:
        load(Settings).check_webhook(ANYWHERE, "anna")
    assert caught.value.param == "tokencast.webhook"
    monkeypatch.setenv("TOKENCAST_WEBHOOK_SECRET", SECRET)
    with pytest.raises(InvalidRequest, match="private address") as caught:
        load(Settings).check_webhook(WebhookOptions("https://169.254.169.254/"), "anna")
    assert caught.value.param == "tokencast.webhook.url"


OWN = {
    "anna": {"webhook": {"url": "https://anna.example.com/?k=Hunter2", "events": ["failed"]}, "webhook_secret": NEXT}
}


def test_a_tenant_has_a_webhook_and_a_secret_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tenants").write_text(json.dumps({**OWN, "ben": {"webhook_secret": f"{NEXT},{SECRET}"}}))
    monkeypatch.setenv("TOKENCAST_TENANTS_FILE", str(tmp_path / "tenants"))
    settings = load_for_process()
    assert settings.has_webhooks
    assert json.loads(settings.default_webhook("anna")) == OWN["anna"]["webhook"]
    assert [settings.default_webhook(tenant) for tenant in ("ben", "carla")] == [b"", b""]
    assert [settings.webhook_secrets_of(tenant) for tenant in ("anna", "ben", "carla")] == [
        (NEXT,), (NEXT, SECRET), (),
    ]  # fmt: skip
    settings.check_webhook(ANYWHERE, "ben")
    with pytest.raises(InvalidRequest, match="not available"):
        settings.check_webhook(ANYWHERE, "carla")
    assert not re.search(f"Hunter2|{NEXT}", repr(settings))
    monkeypatch.setenv("TOKENCAST_WEBHOOK_SECRET", SECRET)
    monkeypatch.setenv("TOKENCAST_WEBHOOK_URL", "https://all.example.com/")
    settings = load_for_process()
    assert [json.loads(settings.default_webhook(tenant))["url"] for tenant in ("anna", "ben")] == [
        "https://anna.example.com/?k=Hunter2", "https://all.example.com/",
    ]  # fmt: skip
    assert [settings.webhook_secrets_of(tenant) for tenant in ("anna", "carla")] == [(NEXT,), (SECRET,)]


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"webhook": {"url": "https://a.example.com/"}}, ".webhook: needs `webhook_secret`, or TOKENCAST_WEBHOOK_S"),
        ({"webhook": {"url": "http://Hunter2.example.com/"}, "webhook_secret": NEXT}, ".webhook.url: must begin with"),
        ({"webhook": {"url": "https://a.example.com/", "events": []}}, ".webhook.events: "),
        ({"webhook": {"url": "https://a.example.com/", "events": ["Hunter2"]}}, ".webhook.events[0]: "),
        ({"webhook": {"uri": "https://a.example.com/"}}, ".webhook: unknown field `uri`"),
        ({"webhook": {"event": ["failed"]}}, ".webhook: unknown field `event`; did you mean `events`?"),
        ({"webhook_secret": "Hunter2"}, ".webhook_secret: must be `whsec_`"),
        ({"webhook_secret": 5}, ".webhook_secret: is not a list"),
    ],
)  # fmt: skip
def test_a_webhook_of_a_tenant_that_is_none(monkeypatch: pytest.MonkeyPatch, own: object, said: str) -> None:
    monkeypatch.setenv("TOKENCAST_TENANTS", json.dumps({"anna": own}))
    with pytest.raises(Misconfigured) as caught:
        load_for_process()
    assert caught.value.message.startswith(f"TOKENCAST_TENANTS.anna{said}")
    assert "Hunter2" not in caught.value.message
