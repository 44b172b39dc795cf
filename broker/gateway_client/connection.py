"""Connection to a gateway: directly or through a proxy, trusted certificates, error messages.

A gateway on this machine is contacted directly, even if the environment sets a proxy, so that no proxy sees the key.
For other gateways HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY apply, as for other programs.
"""

from __future__ import annotations

import ssl
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from broker.errors import BrokerError, Misconfigured
from broker.runtime.environment import proxy_variables
from broker.runtime.http_tls import ssl_context, tls_failure
from broker.settings.urls import is_loopback


class Unreachable(BrokerError):
    """The gateway does not respond."""

    code = "unreachable"


def open_http(url: str, headers: dict[str, str], timeout: httpx2.Timeout) -> httpx2.Client:
    """Return a client for the gateway at a URL. Raises Misconfigured with the variable of an unusable proxy."""
    name, proxy = _proxy(url) or ("TOKENCAST_URL", None)
    secure = any(each.lower().startswith("https:") for each in (url, proxy or ""))
    verify = ssl_context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        return httpx2.Client(
            base_url=url, headers=headers, timeout=timeout, verify=verify, trust_env=False, proxy=proxy
        )
    except ImportError:
        wrong = "a SOCKS proxy needs the Python package socksio, which is not installed"
    except (httpx2.InvalidURL, ValueError):
        wrong = (
            "a proxy URL must begin with http://, https://, socks5:// or socks5h://"
            if proxy
            else "is not the URL of a gateway"
        )
    hint = f"; set NO_PROXY={urlsplit(url).hostname} to connect to the gateway directly" if proxy else ""
    raise Misconfigured(f"{name}: {wrong}{hint}")


def unreachable(error: httpx2.TransportError, url: str) -> Unreachable:
    """Describe a transport error, without the URL of a proxy: it may contain a password."""
    if failure := tls_failure(error, f"the gateway at {url}"):
        hint = "; SSL_CERT_FILE can add trusted certificates" if "not trusted" in failure else ""
        return Unreachable(f"{failure}{hint}")
    proxy = _proxy(url)
    if proxy is not None:
        return Unreachable(f"no response from {url} through the proxy of {proxy[0]}")
    if isinstance(error, httpx2.ConnectError):
        return Unreachable(f"no gateway at {url}: is `tokencast api` or `make run` running?")
    return Unreachable(f"no response from {url}: {error or type(error).__name__}")


def _proxy(url: str) -> tuple[str, str] | None:
    """Return (name of the variable, URL) of the proxy for a gateway; None if it is contacted directly."""
    parts = urlsplit(url)
    proxies = getproxies()
    excluded = [name.strip().lstrip("*.").lower() for name in proxies.get("no", "").split(",")]
    dotted = f".{parts.hostname}"
    if is_loopback(url) or proxy_bypass(parts.netloc) or any(name and dotted.endswith(f".{name}") for name in excluded):
        return None
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy:
        return None
    name = next(proxy_variables(parts.scheme), f"{parts.scheme}_proxy")
    return name, proxy if "://" in proxy else f"http://{proxy}"
