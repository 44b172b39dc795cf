"""TLS to HTTP servers: trusted certificates, and error messages."""

from __future__ import annotations

import os.path
import ssl
from collections.abc import Iterator

import httpx2

from broker.errors import Misconfigured
from broker.runtime.environment import read_variable

_NO_TLS = (
    "WRONG_VERSION_NUMBER",
    "RECORD_LAYER_FAILURE",
    "HTTP_REQUEST",
)  # OpenSSL's reasons for a reply in plain text


def ssl_context() -> ssl.SSLContext:
    """Return a context that trusts the certificates in SSL_CERT_FILE and SSL_CERT_DIR if they are set, otherwise those
    of the system. Raises Misconfigured with the name of the variable that cannot be used."""
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
    """Describe the TLS failure among the causes of an error, as a sentence without a full stop; None if there is none.
    `whose` is the server, such as "the upstream"."""
    for cause in causes(error):
        reason = getattr(cause, "reason", None)  # only the cause of aiohttp's exceptions of these classes has one
        if not isinstance(cause, ssl.SSLError) or not reason:
            continue
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"{whose}'s certificate is not trusted: {cause.verify_message.rstrip('.')}"
        if reason in _NO_TLS:
            return f"{whose} does not speak TLS (https://)"
        return f"TLS with {whose} failed: {reason.lower().replace('_', ' ')}"
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and the chain of exceptions that caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
