"""TLS for Redis: the one `ssl.SSLContext` that every connection of a URL uses, and messages for failed handshakes.

Certificates and host names are verified unless the URL turns it off. The same context is used for servers, nodes of a
cluster and sentinels.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

OPTIONS = frozenset(
    {
        *("ssl_cert_reqs", "ssl_check_hostname", "ssl_ca_certs", "ssl_ca_path", "ssl_ca_data"),
        *("ssl_certfile", "ssl_keyfile", "ssl_password", "ssl_min_version", "ssl_ciphers"),
    }
)
"""URL options that this module reads."""

_VERIFY = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_TRUE, _FALSE = frozenset({"true", "1", "yes", "on", "t", "y"}), frozenset({"false", "0", "no", "off", "f", "n"})

T = TypeVar("T")

_UNTRUSTED = {18, 19, 20, 21, 24, 27}  # OpenSSL's X509_V_ERR_… for a chain without a trusted authority
_WRONG_NAME = {62, 64}
_PLAIN = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"}


def tls_context(options: Mapping[str, str]) -> ssl.SSLContext:
    """Build the context that the `ssl_…` options describe. ValueError names the invalid option."""
    context = _trusting(options)
    verify = _verify_mode(options.get("ssl_cert_reqs", "required"))
    named = options.get("ssl_check_hostname")
    check = _boolean("ssl_check_hostname", named) if named is not None else verify != ssl.CERT_NONE
    if check and verify == ssl.CERT_NONE:
        raise ValueError("ssl_check_hostname=true needs ssl_cert_reqs=required; ssl_cert_reqs=none verifies nothing")
    context.check_hostname = check
    context.verify_mode = verify
    _present_certificate(context, options)
    if version := options.get("ssl_min_version"):
        context.minimum_version = _version(version)
    if ciphers := options.get("ssl_ciphers"):
        _tried("ssl_ciphers", lambda: context.set_ciphers(ciphers))
    return context


def failure(error: OSError, host: str) -> str:
    """Explain why a handshake, or the first read after it, failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate {_distrust(error, host)} (CERTIFICATE_VERIFY_FAILED)"
    if not isinstance(error, ssl.SSLError):  # connection closed, or timeout
        return "it does not answer the TLS handshake; if it does not support TLS, use redis:// in the URL"
    reason = error.reason or ""
    if reason in _PLAIN:
        return "it does not support TLS; use redis:// in the URL"
    if "CERTIFICATE_REQUIRED" in reason:
        return "it requires a client certificate (ssl_certfile, ssl_keyfile)"
    if "UNKNOWN_CA" in reason or "BAD_CERTIFICATE" in reason:
        return "it rejects the client certificate (ssl_certfile)"
    if "PROTOCOL_VERSION" in reason or "UNSUPPORTED_PROTOCOL" in reason:
        return "it supports no TLS version that is allowed here (ssl_min_version)"
    return f"the TLS handshake failed ({reason.lower().replace('_', ' ') or 'no reason given'})"


def _distrust(error: ssl.SSLCertVerificationError, host: str) -> str:
    if error.verify_code in _WRONG_NAME:
        return f"is not valid for {host}"
    if error.verify_code in _UNTRUSTED:
        return "is not signed by a trusted authority (ssl_ca_certs)"
    if error.verify_code == 10:
        return "has expired"
    if error.verify_code == 9:
        return "is not valid yet"
    return f"is not trusted: {error.verify_message}"


def _trusting(options: Mapping[str, str]) -> ssl.SSLContext:
    """Create a context that trusts the authorities named in the URL, or the system's if the URL names none."""
    file, folder, data = (options.get(f"ssl_ca_{kind}") for kind in ("certs", "path", "data"))
    if file is not None:
        _readable("ssl_ca_certs", file)
    if folder is not None and not Path(folder).is_dir():
        raise ValueError(f"ssl_ca_path: no such directory: {folder}")
    named = ", ".join(name for name in ("ssl_ca_certs", "ssl_ca_path", "ssl_ca_data") if name in options)
    return _tried(
        named,
        lambda: ssl.create_default_context(cafile=file, capath=folder, cadata=data),
        "no certificate in PEM format",
    )


def _present_certificate(context: ssl.SSLContext, options: Mapping[str, str]) -> None:
    certificate, key = options.get("ssl_certfile"), options.get("ssl_keyfile")
    if certificate is None:
        for name in ("ssl_keyfile", "ssl_password"):
            if name in options:
                raise ValueError(f"{name} needs ssl_certfile")
        return
    _readable("ssl_certfile", certificate)
    if key is not None:
        _readable("ssl_keyfile", key)
    password = options.get("ssl_password", "")  # without a password OpenSSL would prompt on the terminal
    _tried(
        "ssl_certfile, ssl_keyfile, ssl_password",
        lambda: context.load_cert_chain(certificate, key, password),
        "no matching certificate and key in PEM format that this password decrypts",
    )


def _verify_mode(text: str) -> ssl.VerifyMode:
    mode = _VERIFY.get(text.lower().removeprefix("ssl.").removeprefix("cert_"))
    if mode is None:
        raise ValueError(f"ssl_cert_reqs must be one of {', '.join(_VERIFY)}")
    return mode


def _version(text: str) -> ssl.TLSVersion:
    version = _VERSIONS.get(text.lower().removeprefix("tlsversion.").removeprefix("tlsv").replace("_", "."))
    if version is None:
        raise ValueError("ssl_min_version must be TLSv1.2 or TLSv1.3")
    return version


def _boolean(name: str, text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise ValueError(f"{name} must be true or false")
    return text.lower() in _TRUE


def _readable(name: str, path: str) -> None:
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a file name"
        raise ValueError(f"{name}: {reason}: {path}") from None


def _tried(names: str, load: Callable[[], T], expected: str = "not known to OpenSSL") -> T:
    try:
        return load()
    except (ssl.SSLError, ValueError, OSError):
        raise ValueError(f"{names}: {expected}") from None
