"""Which URLs and addresses a webhook may call."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import pytest

from broker.webhooks.addresses import AddressRefused, check_webhook_url, is_public, resolve

PRIVATE = """
0.0.0.0 10.1.2.3 100.64.0.1 100.100.100.200 127.0.0.1 127.255.255.254 168.63.129.16 169.254.169.254 172.16.0.1
192.0.0.192 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 203.0.113.9 224.0.0.1 240.0.0.1 255.255.255.255
:: ::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::127.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b:1::1 100::1 2001:db8::1 2002:7f00:1::
2002:a9fe:a9fe::1 2001:0:0:0:0:0:80ff:fffe fc00::1 fd00:ec2::254 fe80::1 fec0::1 ff02::1
"""
PUBLIC = "8.8.8.8 1.1.1.1 93.184.216.34 2606:4700::1111 2a00:1450:4001::200e 64:ff9b::808:808 ::ffff:8.8.8.8"


@pytest.mark.parametrize("address", PRIVATE.split())
def test_a_private_address(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC.split())
def test_a_public_address(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        *(
            "https://hooks.example.com",
            "https://hooks.example.com:8443/a/b?c=d",
            "https://user:pass@hooks.example.com/",
        ),
        *("https://8.8.8.8/hook", "https://[2606:4700::1111]/hook", "HTTPS://Hooks.Example.com./hook"),
    ],
)
def test_a_url_that_may_be_called(url: str) -> None:
    assert check_webhook_url(url, allow_private=False) == url


@pytest.mark.parametrize(
    "url",
    [
        *("http://hooks.example.com/", "http://8.8.8.8/", "https://localhost/", "https://LOCALHOST:443/"),
        *("https://app.localhost/", "https://127.0.0.1/", "https://127.1/", "https://0x7f.1/", "https://2130706433/"),
        *("https://0177.0.0.1/", "https://10.0.0.1/", "https://169.254.169.254/latest/meta-data", "https://[::1]/"),
        *("https://[::ffff:127.0.0.1]/", "https://metadata.google.internal/", "https://printer.local/", "https://0/"),
        *("https://localhost./", "https://user@127.0.0.1/", "https://example.com@127.0.0.1/"),
    ],
)
def test_a_url_that_is_called_only_if_private_addresses_are_allowed(url: str) -> None:
    with pytest.raises(ValueError, match="TOKENCAST_WEBHOOK_ALLOW_PRIVATE"):
        check_webhook_url(url, allow_private=False)
    assert check_webhook_url(url, allow_private=True) == url


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://example.com/", "file:///etc/passwd", "https:/example.com", "https://", "https:///path", "example.com"),
        *("https://example.com:0/", "https://example.com:99999/", "https://exa mple.com/", "https://example.com/\n"),
        *("https://example..com/", "https://-.example.com/", "https://[::1", "https://[::1]a/", "https://exämple.com/"),
        *("https://example.com\\@127.0.0.1/", "https://example.com/#fragment", f"https://{'a' * 64}.example.com/"),
    ],
)
def test_a_url_that_is_none(url: str) -> None:
    for allow_private in (False, True):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the messages differ
            check_webhook_url(url, allow_private=allow_private)
        assert "example" not in str(caught.value)


NAMES = {
    "mixed.example": ["10.0.0.1", "8.8.8.8", "8.8.8.8", "::1"],
    "private.example": ["127.0.0.1", "fe80::1%eth0"],
    "public.example": ["2606:4700::1111", "8.8.8.8"],
}


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's resolver knows these names, and no others."""

    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        if host not in NAMES:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(None, None, None, "", (address, port)) for address in NAMES[host]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.usefixtures("names")
async def test_only_public_addresses_of_a_name_are_called() -> None:
    assert await resolve("mixed.example", 443, allow_private=False) == ["8.8.8.8"]
    assert await resolve("public.example", 443, allow_private=False) == NAMES["public.example"]
    with pytest.raises(AddressRefused):
        await resolve("private.example", 443, allow_private=False)
    assert await resolve("private.example", 443, allow_private=True) == NAMES["private.example"]
    with pytest.raises(OSError, match="not known"):
        await resolve("unknown.example", 443, allow_private=False)
