"""The gateway's URL and the API key: from arguments, or from the environment."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from tokencast_client.errors import Misconfigured

DEFAULT_URL = "http://127.0.0.1:8000"


def gateway_url(base_url: str | None) -> str:
    """Return a URL without a trailing slash: the argument, TOKENCAST_URL or the default. Raises Misconfigured."""
    url = base_url or os.environ.get("TOKENCAST_URL") or DEFAULT_URL
    name = "base_url" if base_url else "TOKENCAST_URL"
    try:
        parts = urlsplit(url)
        valid = parts.scheme.lower() in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise Misconfigured(f"{name}: is not a URL with a host and a port, as in {DEFAULT_URL}") from None
    if not valid or not url.isprintable() or " " in url:
        raise Misconfigured(f"{name}: must be the URL of a gateway, as in {DEFAULT_URL}")
    if "@" in parts.netloc:
        raise Misconfigured(f"{name}: must not contain a user name or a password; use api_key or TOKENCAST_API_KEY")
    if parts.query or parts.fragment:
        raise Misconfigured(f"{name}: must not have a query (`?`) or a fragment (`#`)")
    url = url.rstrip("/")
    if url.endswith("/v1"):
        raise Misconfigured(f"{name}: must not end with `/v1`: the client appends it")
    return url


def key_of(api_key: str | None) -> str | None:
    """Return the API key: the argument, TOKENCAST_API_KEY or the content of the file TOKENCAST_API_KEY_FILE."""
    key = api_key if api_key is not None else secret("TOKENCAST_API_KEY")
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise Misconfigured("The API key contains characters that cannot be sent in a header.")
    return key or None


def secret(name: str) -> str | None:
    """Return a variable's value, or the content of the file in `<NAME>_FILE`, without surrounding white space."""
    path = os.environ.get(f"{name}_FILE")
    if os.environ.get(name) or not path:
        return os.environ.get(name)
    try:
        return Path(path).read_text("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(
            f"{name}_FILE: {getattr(error, 'strerror', None) or 'the file is not UTF-8 text'}"
        ) from None
