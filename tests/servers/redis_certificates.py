"""Certificates of a test authority, created with openssl."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


class Certificates:
    """A directory with `ca.pem`, and `<name>.pem` and `<name>.key` for each issued name."""

    def __init__(self, directory: Path) -> None:
        self._openssl = shutil.which("openssl") or pytest.skip("openssl is not installed")
        self._directory = directory
        self.ca = directory / "ca.pem"
        self._run("req", "-x509", *self._key("ca"), "-out", "ca.pem", "-days", "2", "-subj", "/CN=authority")

    def issue(self, name: str, *subjects: str) -> dict[str, str]:
        """Issue a certificate for `DNS:…` and `IP:…` names. Returns the options of a server that uses it."""
        extensions = self._directory / f"{name}.ext"
        extensions.write_text(f"subjectAltName={','.join(subjects)}\n")
        self._run("req", *self._key(name), "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
        self._run("x509", "-req", "-in", f"{name}.csr", *signing, "-extfile", extensions.name, "-out", f"{name}.pem")
        return {
            "tls-cert-file": str(self._directory / f"{name}.pem"),
            "tls-key-file": str(self._directory / f"{name}.key"),
            "tls-ca-cert-file": str(self.ca),
            "tls-auth-clients": "no",
        }

    def _key(self, name: str) -> tuple[str, ...]:
        return ("-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key")

    def _run(self, *arguments: str) -> None:
        subprocess.run([self._openssl, *arguments], cwd=self._directory, check=True, capture_output=True)
