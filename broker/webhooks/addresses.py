"""Checks of webhook URLs and of the addresses that their hosts resolve to.

A webhook's URL comes from a caller, and the request comes from inside the operator's network. Unless the operator
allows private addresses, only public ones are called, over https only. The names are resolved here, and the connection
is made to the address that was checked: with a second look-up, a name could change to a private address in between.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import SplitResult, urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

PORTS = {"http": 80, "https": 443}
_LOCAL_NAMES = ("localhost", "localdomain", "local", "internal")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?", re.ASCII | re.IGNORECASE)
_BRACKETS = re.compile(r"\[[0-9a-f:.]+\](:[0-9]*)?", re.IGNORECASE)
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NEVER = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "192.0.0.0/24",  # also the metadata service of Oracle Cloud
            "192.88.99.0/24",  # the former 6to4 relays
            "168.63.129.16/32",  # the platform's own service in each virtual network of Azure
        ),
    )
)
"""Networks of private services that count as public addresses, in some versions of `ipaddress` at least."""


class AddressRefused(Exception):
    """A host has no address that may be called."""


def check_webhook_url(url: str, *, allow_private: bool) -> str:
    """Return the URL unchanged. Raises ValueError with the reason, without quoting the URL: it may contain a secret."""
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise ValueError("contains white space, a control character, a backslash or a character that is not ASCII")
    if not re.match(r"https?://", url, re.IGNORECASE):
        raise ValueError("must begin with https://")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("is not a URL with a host and a port") from None
    if not _is_host(parts) or port == 0:
        raise ValueError("has no valid host and port")
    if "#" in url:
        raise ValueError("must not have a fragment (`#`)")
    if not allow_private:
        _check_public(parts)
    return url


def _check_public(parts: SplitResult) -> None:
    if parts.scheme.lower() != "https":
        raise ValueError("must begin with https://, unless TOKENCAST_WEBHOOK_ALLOW_PRIVATE is 1")
    host = (parts.hostname or "").rstrip(".")
    address = literal_address(host)
    if host.rpartition(".")[2] in _LOCAL_NAMES or (address is not None and not is_public(address)):
        raise ValueError("names a private address, which is refused unless TOKENCAST_WEBHOOK_ALLOW_PRIVATE is 1")


def _is_host(parts: SplitResult) -> bool:
    host = (parts.hostname or "").removesuffix(".")
    if "[" in parts.netloc:
        return bool(_BRACKETS.fullmatch(parts.netloc.rpartition("@")[2])) and literal_address(host) is not None
    return len(host) < 254 and all(len(label) < 64 and _LABEL.fullmatch(label) for label in host.split("."))


def literal_address(host: str) -> Address | None:
    """Return the address of a host as the system interprets it; None for a name. `127.1`, `0x7f000001` and `2130706433`
    are addresses too (inet_aton)."""
    try:
        if ":" in host:
            return ipaddress.IPv6Address(host)
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (ValueError, OSError):
        return None


def is_public(address: Address) -> bool:
    """Return whether an address is a public one: not private, loopback, link-local, multicast or reserved, also not
    as an IPv4 address inside an IPv6 address."""
    if isinstance(address, ipaddress.IPv4Address):
        listed = any(address in network for network in _NEVER)
        return address.is_global and not (address.is_multicast or address.is_reserved or listed)
    if address in _NAT64:
        return is_public(ipaddress.IPv4Address(address.packed[-4:]))
    inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
    if inner is not None and not is_public(inner):
        return False
    return address.ipv4_mapped is not None or (address in _PUBLIC_V6 and address.is_global)


async def resolve(host: str, port: int, *, allow_private: bool) -> Sequence[str]:
    """Return the addresses of a host that may be called, in the system's order. Raises AddressRefused if it has only
    others, and OSError if it has none."""
    found = dict.fromkeys(await _look_up(host, port))
    allowed = [each for each in found if allow_private or is_public(ipaddress.ip_address(each.partition("%")[0]))]
    if not allowed:
        raise AddressRefused
    return allowed


async def _look_up(host: str, port: int) -> list[str]:
    """Look a name up in a thread of its own. The event loop has a few threads for all look-ups of the process, which a
    receiver with a slow name server could occupy. The thread does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[list[str]] = loop.create_future()

    def deliver(found: list[str], error: OSError | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(found)
        else:
            future.set_exception(error)

    def look_up() -> None:
        found: list[str] = []
        failure: OSError | None = None
        try:
            rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found = [str(address[0]) for *_, address in rows]
        except UnicodeError:
            failure = OSError("the name is not valid")
        except OSError as error:
            failure = error
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(deliver, found, failure)

    threading.Thread(target=look_up, name="webhook-lookup", daemon=True).start()
    return await future
