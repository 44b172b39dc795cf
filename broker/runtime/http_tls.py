"""TLS to HTTP servers: the authorities that are trusted, and what a failure means."""

from __future__ import annotations

import os.path
import ssl
from collections.abc import Iterator

import httpx2

from broker.errors import Misconfigured
from broker.runtime.environment import read_variable

_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST")  # what OpenSSL makes of plain text


def trusted() -> ssl.SSLContext:
    """A context that verifies against the certificates of SSL_CERT_FILE and SSL_CERT_DIR if they are set, else against
    those of the system. Misconfigured names the one that cannot be read."""
    file, directory = read_variable("SSL_CERT_FILE"), read_variable("SSL_CERT_DIR")
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


def tls_failure(error: BaseException, whose: str) -> str | None:
    """What a failure of TLS among the causes of an error means, as a sentence without its full stop; None if there is
    none. `whose`: "the upstream"."""
    for cause in causes(error):
        reason = getattr(cause, "reason", None)  # aiohttp's exceptions of these classes have none: their cause has
        if not isinstance(cause, ssl.SSLError) or not reason:
            continue
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"{whose}'s certificate is not trusted: {cause.verify_message.rstrip('.')}"
        if reason in _NO_TLS:
            return f"{whose} does not speak TLS (https://)"
        return f"TLS with {whose} failed: {reason.lower().replace('_', ' ')}"
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
