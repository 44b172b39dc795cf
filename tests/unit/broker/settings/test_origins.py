"""Origins and host names in the settings: normalized to the form that browsers send, or refused."""

from __future__ import annotations

import pytest

from broker.errors import Misconfigured
from broker.settings.loading import load
from broker.settings.origins import normalize_host, normalize_origin
from broker.settings.settings import Settings


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("https://app.example", "https://app.example"),
        ("https://app.example/", "https://app.example"),
        ("HTTPS://App.Example:443", "https://app.example"),
        ("http://app.example:80/", "http://app.example"),
        ("http://app.example:443", "http://app.example:443"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[0:0:0:0:0:0:0:1]:3000", "http://[::1]:3000"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("chrome-extension://aBcdefghijklmnop", "chrome-extension://abcdefghijklmnop"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("file://", "file://"),
        ("*", "*"),
    ],
)
def test_an_origin_is_normalized_to_the_form_that_browsers_send(written: str, sent: str) -> None:
    assert normalize_origin(written) == sent


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("app.example", "no scheme"),
        ("localhost:3000", "no scheme"),
        ("//app.example", "no scheme"),
        ("https://app.example/app", "path"),
        ("https://app.example?x", "path"),
        ("https://app.example#x", "path"),
        ("https://", "no valid host"),
        ("https://*.example", "no valid host"),
        ("https://app.example:port", "no valid host"),
        ("https://app.example:99999", "no valid host"),
        ("https://a b.example", "no valid host"),
        ("null", "sandboxed"),
        ("NULL", "sandboxed"),
    ],
)
def test_an_invalid_origin_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch, written: str, reason: str) -> None:
    monkeypatch.setenv("TOKENCAST_CORS_ORIGINS", f"http://fine.example,{written}")
    with pytest.raises(Misconfigured, match=f"^TOKENCAST_CORS_ORIGINS: .*{reason}"):
        load(Settings)


def test_a_password_in_an_origin_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENCAST_CORS_ORIGINS", "https://anna:hunter2@app.example")
    with pytest.raises(Misconfigured) as caught:
        load(Settings)
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize(
    ("written", "normalized"),
    [
        ("Tokencast.Example", "tokencast.example"),
        ("tokencast.example.", "tokencast.example"),
        ("*.Example", "*.example"),
        ("my_server", "my_server"),
        ("10.0.0.5", "10.0.0.5"),
        ("[2001:DB8::5]", "2001:db8::5"),
        ("2001:db8:0::5", "2001:db8::5"),
    ],
)
def test_a_host_is_normalized(written: str, normalized: str) -> None:
    assert normalize_host(written) == normalized


@pytest.mark.parametrize(
    "written", ["https://a.example", "a.example:8000", "a.example/x", "*", "*.", "a.*.example", "-"]
)
def test_an_invalid_host_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.setenv("TOKENCAST_ALLOWED_HOSTS", written)
    with pytest.raises(Misconfigured, match=r"^TOKENCAST_ALLOWED_HOSTS: .*not a host name"):
        load(Settings)
