"""Certificates of private authorities, created with openssl."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"


def make_authority(directory: Path) -> Path:
    """Create an authority. Its certificate is alone in a directory usable as SSL_CERT_DIR; the key is in the parent."""
    store = directory / "authority"
    store.mkdir()
    _openssl(directory, f"req -x509 {_KEY} -days 1 -subj /CN={directory.name} -keyout ca.key -out authority/ca.pem")
    _openssl(directory, "rehash authority")
    return store / "ca.pem"


def make_certificate(directory: Path, authority: Path, subject: str = "IP:127.0.0.1") -> None:
    """Create `cert.pem` and `key.pem` in the directory, signed by the authority."""
    key = authority.parent.parent / "ca.key"
    (directory / "names").write_text(f"subjectAltName={subject}")
    _openssl(directory, f"req {_KEY} -subj /CN=server -keyout key.pem -out server.csr")
    signing = f"-CA {authority} -CAkey {key} -CAcreateserial -CAserial serial"
    _openssl(directory, f"x509 -req -in server.csr {signing} -days 1 -extfile names -out cert.pem")


def server_context(directory: Path) -> ssl.SSLContext:
    """The SSL context of a server with the certificate in the directory."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    return context


def _openssl(directory: Path, command: str) -> None:
    subprocess.run(["openssl", *command.split()], cwd=directory, check=True, capture_output=True)
