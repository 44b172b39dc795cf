"""Web origins and host names, in settings and as sent by browsers (RFC 6454, WHATWG URL)."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

_AUTHORITY = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{0,5}))?", re.ASCII | re.IGNORECASE)
_ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/?#\\]*)(?P<rest>.*)", re.ASCII | re.IGNORECASE)
_HOST = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?", re.ASCII)
DEFAULT_PORTS = {"http": 80, "https": 443}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Authority(NamedTuple):
    """A host and its port. The host is in lower case, an IPv6 address without brackets; a port of None means no
    port."""

    host: str
    port: int | None


def parse_authority(text: str) -> Authority | None:
    """Parse `host` or `host:port`; None if the text is neither."""
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        return None
    host, port = match["host"].lower(), int(match["port"]) if match["port"] else None
    if host.startswith("["):
        address = address_of(host[1:-1])
        if address is None:
            return None
        host = str(address)
    return Authority(host.removesuffix("."), port) if port is None or port < 65536 else None


def address_of(host: str) -> Address | None:
    """Return the IP address of a host; None if it is a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine in every resolver."""
    address = address_of(host)
    return host == "localhost" if address is None else address.is_loopback


def normalize_origin(text: str) -> str:
    """Return an origin as browsers send it: lower case, no default port, no trailing slash. Raises ValueError with the
    reason for invalid text. `*` means every origin; `null` is rejected, because every sandboxed page has it."""
    if text == "*":
        return text
    shown = "one of them" if "@" in text else f"`{text}`"
    if text.lower() == "null":
        raise ValueError(
            "`null` is the origin of every sandboxed page and local file; list origins, or use `*` for all of them"
        )
    match = _ORIGIN.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{shown} has no scheme; an origin consists of scheme, host and port, as in https://app.example"
        )
    scheme, authority = match["scheme"].lower(), match["authority"]
    if match["rest"] not in ("", "/"):
        raise ValueError(f"{shown} has a path; an origin consists of scheme, host and port, as in https://app.example")
    if scheme == "file" and not authority:
        return "file://"  # sent by some embedded browsers
    parsed = parse_authority(_ascii(authority))
    if parsed is None:
        raise ValueError(
            f"{shown} has no valid host; an origin consists of scheme, host and port, as in https://app.example"
        )
    host = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
    port = "" if parsed.port in (None, DEFAULT_PORTS.get(scheme)) else f":{parsed.port}"
    return f"{scheme}://{host}{port}"


def normalize_host(text: str) -> str:
    """Return a host name, an IP address or `*.domain` in lower case. Raises ValueError with the reason for other
    text."""
    host = _ascii(text).lower().removesuffix(".")
    address = address_of(host.removeprefix("[").removesuffix("]"))
    if address is not None:
        return str(address)
    if not _HOST.fullmatch(host):
        raise ValueError(
            f"`{text}` is not a host name; omit scheme, port and path, as in tokencast.example or *.example"
        )
    return host


def _ascii(host: str) -> str:
    """Encode an international name as browsers do (RFC 3490); "" if that is impossible."""
    try:
        return host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        return ""
