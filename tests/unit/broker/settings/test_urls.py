"""Loopback URLs, and the addresses on which a gateway without keys may listen."""

from __future__ import annotations

import pytest

from api.__main__ import check_open
from broker.errors import Misconfigured
from broker.settings.settings import Settings
from broker.settings.urls import is_loopback


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "127.0.0.2",
        "0",
        "0.0.0.0",
        "2130706433",
        "0x7f000001",
        "017700000001",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "foo.localhost",
    ],
)
def test_each_spelling_of_loopback_is_recognized(host: str) -> None:
    assert is_loopback(f"http://{host}:8000")


@pytest.mark.parametrize(
    "host",
    ["10.1", "128.0.0.1", "1", "[::2]", "[::ffff:10.0.0.1]", "127.0.0.1.example", "localhost.example", "gateway"],
)
def test_other_hosts_are_not_loopback(host: str) -> None:
    assert not is_loopback(f"http://{host}:8000")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "::ffff:127.0.0.1", "127.0.0.2"])
def test_a_gateway_without_keys_may_listen_on_loopback(host: str) -> None:
    settings = Settings(HOST=host)  # type: ignore[call-arg]
    assert "[" not in settings.host
    check_open(settings)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "10.0.0.1", "::ffff:10.0.0.1", "gateway.example"])
def test_a_gateway_without_keys_may_not_listen_elsewhere(host: str) -> None:
    with pytest.raises(Misconfigured, match="open to anyone"):
        check_open(Settings(HOST=host))  # type: ignore[call-arg]
