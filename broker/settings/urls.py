"""URLs of HTTP servers in settings, checked when they are read: an invalid one ends the start."""

from __future__ import annotations

import ipaddress
import re
import socket
from urllib.parse import SplitResult, urlsplit

_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?", re.ASCII | re.IGNORECASE)


def check_http_url(url: str, *, example: str) -> str:
    """Return the URL unchanged. Raises ValueError with the reason, without quoting the URL: it may contain a
    password."""
    if not url.isprintable() or " " in url:
        raise ValueError("contains white space or a control character")
    if not re.match(r"https?://", url, re.IGNORECASE):
        raise ValueError(f"must begin with http:// or https://, as in {example}")
    if "#" in url or "?" in url:
        raise ValueError("must not have a query (`?`) or a fragment (`#`)")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(f"is not a URL with a host and a port, as in {example}") from None
    if "@" in parts.netloc:
        raise ValueError("must not contain a user name or a password")
    if not _is_host(parts) or port == 0:
        raise ValueError(f"has no valid host and port, as in {example}")
    return url


def is_loopback(url: str) -> bool:
    """Return whether a checked URL is of a server on this machine, in any notation of its address."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address(host)
    return address is not None and (address.is_loopback or address.is_unspecified)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address of a host as the system interprets it; None for a name. `127.1`, `0x7f000001` and `2130706433`
    are addresses too (inet_aton)."""
    try:
        if ":" not in host:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        address = ipaddress.IPv6Address(host)
        return address.ipv4_mapped or address
    except (ValueError, OSError):
        return None


def _is_host(parts: SplitResult) -> bool:
    host = parts.hostname or ""
    if "[" in parts.netloc:
        return True  # urlsplit has checked that it is an IPv6 address
    try:
        labels = host.removesuffix(".").encode("idna").decode().split(".")
    except UnicodeError:
        return False
    return all(len(label) < 64 and _NAME.fullmatch(label) for label in labels)
