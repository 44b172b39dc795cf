"""Connections to a gateway: directly or through a proxy, trusted certificates, error messages.

A gateway on this machine is contacted directly, even if the environment sets a proxy, so that no proxy sees the key.
For other gateways HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY apply, as for other programs.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from collections.abc import Iterator
from typing import TypedDict
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from tokencast_client.errors import Misconfigured, TokencastError, UnexpectedResponse, Unreachable
from tokencast_client.version import __version__

_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST")
"""OpenSSL's reasons for a reply in plain text."""


class Options(TypedDict):
    """The arguments of httpx2.Client and httpx2.AsyncClient."""

    timeout: httpx2.Timeout
    limits: httpx2.Limits
    verify: ssl.SSLContext
    proxy: str | None
    trust_env: bool


def headers_for(api_key: str | None) -> dict[str, str]:
    """Return the headers of all requests."""
    authorization = {"authorization": f"Bearer {api_key}"} if api_key else {}
    return {"user-agent": f"tokencast-client/{__version__}", **authorization}


def options_for(url: str, timeout: float) -> Options:
    """Return the arguments with which to connect to the gateway at a URL. Each stream has a connection of its own, so
    their number has no limit."""
    proxy = (_proxy(url) or (None, None))[1]
    secure = any(each.lower().startswith("https:") for each in (url, proxy or ""))
    return Options(
        timeout=httpx2.Timeout(timeout, connect=min(timeout, 10.0)),
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
        verify=_ssl_context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        proxy=proxy,
        trust_env=False,
    )


def unusable(url: str, error: Exception) -> Misconfigured:
    """Describe why no HTTP client can be made, with the variable of an unusable proxy."""
    name, proxy = _proxy(url) or ("TOKENCAST_URL", None)
    hint = f"; set NO_PROXY={urlsplit(url).hostname} to connect to the gateway directly" if proxy else ""
    if isinstance(error, ImportError):
        return Misconfigured(f"{name}: a SOCKS proxy needs the Python package socksio, which is not installed{hint}")
    if proxy:
        wrong = "a proxy URL must begin with http://, https://, socks5:// or socks5h://"
        return Misconfigured(f"{name}: {wrong}{hint}")
    return Misconfigured(f"{name}: is not the URL of a gateway")


def translated(error: httpx2.RequestError, url: str) -> TokencastError:
    """Return our error for one of the HTTP library: Unreachable, or UnexpectedResponse if the response is damaged."""
    if isinstance(error, httpx2.TransportError) and not isinstance(error, httpx2.UnsupportedProtocol):
        return unreachable(error, url)
    return UnexpectedResponse(f"The server at {url} is not Tokencast.")


def unreachable(error: httpx2.RequestError, url: str) -> Unreachable:
    """Describe a transport error, without the URL of a proxy: it may contain a password."""
    if failure := _tls_failure(error, f"the gateway at {url}"):
        hint = "; SSL_CERT_FILE can add trusted certificates" if "not trusted" in failure else ""
        return Unreachable(f"{failure}{hint}")
    proxy = _proxy(url)
    if proxy is not None:
        return Unreachable(f"no response from {url} through the proxy of {proxy[0]}")
    if isinstance(error, httpx2.ConnectError):
        return Unreachable(f"no gateway at {url}: is `tokencast api` or `make run` running?")
    return Unreachable(f"no response from {url}: {error or type(error).__name__}")


def _ssl_context() -> ssl.SSLContext:
    """Return a context that trusts the certificates in SSL_CERT_FILE and SSL_CERT_DIR if they are set, otherwise those
    of the system."""
    file, directory = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if directory and not os.path.isdir(directory):
        raise Misconfigured(f"SSL_CERT_DIR: no such directory: {directory}")
    if not file and not directory:
        return httpx2.create_ssl_context(trust_env=False)
    try:
        return ssl.create_default_context(cafile=file, capath=directory)
    except ssl.SSLError:
        raise Misconfigured(f"SSL_CERT_FILE: no certificates in PEM format: {file}") from None
    except OSError as error:
        raise Misconfigured(f"SSL_CERT_FILE: {error.strerror}: {file}") from None


def _tls_failure(error: BaseException, whose: str) -> str | None:
    """Describe the TLS failure among the causes of an error; None if there is none."""
    for cause in _causes(error):
        if not isinstance(cause, ssl.SSLError) or not cause.reason:
            continue
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"{whose}'s certificate is not trusted: {cause.verify_message.rstrip('.')}"
        if cause.reason in _NO_TLS:
            return f"{whose} does not speak TLS (https://)"
        return f"TLS with {whose} failed: {cause.reason.lower().replace('_', ' ')}"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _proxy(url: str) -> tuple[str, str] | None:
    """Return (name of the variable, URL) of the proxy for a gateway; None if it is contacted directly."""
    parts = urlsplit(url)
    proxies = getproxies()
    excluded = [name.strip().lstrip("*.").lower() for name in proxies.get("no", "").split(",")]
    dotted = f".{parts.hostname}"
    if _is_here(parts) or proxy_bypass(parts.netloc) or any(name and dotted.endswith(f".{name}") for name in excluded):
        return None
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy:
        return None
    kinds = (f"{parts.scheme}_proxy", "all_proxy")
    named = (name for kind in kinds for name in (kind, kind.upper()) if os.environ.get(name))
    return next(named, kinds[0]), proxy if "://" in proxy else f"http://{proxy}"


def _is_here(parts: SplitResult) -> bool:
    """Return whether a URL is of a server on this machine, in any notation of its address that the system knows."""
    host = (parts.hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host if ":" in host else socket.inet_aton(host))
    except (ValueError, OSError):
        return False
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    return address.is_loopback or address.is_unspecified
