"""The dashboard's libraries: `python -m tests.vendored` writes `api/static/vendor` again from the npm packages that its
lock names, and `python -m tests.vendored NAME@VERSION` moves one of them to another version first.

    FILE  PACKAGE@VERSION  PATH-IN-THE-PACKAGE  SHA-256

`make vendor` runs it. Without a new version, it fails if a package does not have the file of the lock.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.support import ROOT

VENDOR = ROOT / "api/static/vendor"
LOCK = VENDOR / "lock.txt"
LICENSES = VENDOR / "licenses.txt"


class Entry(NamedTuple):
    """A line of the lock."""

    file: str
    package: str
    path: str
    sha256: str

    @property
    def name(self) -> str:
        return self.package.rpartition("@")[0]


def read_lock() -> list[Entry]:
    return [Entry(*line.split()) for line in LOCK.read_text("utf-8").splitlines()]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def unpack(package: str, folder: Path) -> Path:
    """Download an npm package and return its folder."""
    command = ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", str(folder), package]
    name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
    with tarfile.open(folder / name) as archive:
        archive.extractall(folder / name.removesuffix(".tgz"), filter="data")
    return folder / name.removesuffix(".tgz") / "package"


def refresh(newer: dict[str, str]) -> None:
    """Write the files and the licences, and the lock if a package is in `newer`, by its name."""
    entries: list[Entry] = []
    licenses: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for locked in read_lock():
            entry = locked._replace(package=newer.get(locked.name, locked.package))
            unpacked = unpack(entry.package, Path(folder))
            data = (unpacked / entry.path).read_bytes()
            entry = entry._replace(sha256=digest(data))
            if entry.package == locked.package and entry != locked:
                raise SystemExit(f"{entry.package} does not have the {entry.path} of the lock.")
            (VENDOR / entry.file).write_bytes(data)
            entries.append(entry)
            terms = next(unpacked.glob("LICENSE*")).read_text("utf-8").strip()
            licenses.append(f"{entry.file}: {entry.package}\n\n{terms}\n")
    LICENSES.write_text(f"\n{'-' * 80}\n\n".join(licenses), "utf-8")
    LOCK.write_text("".join("  ".join(entry) + "\n" for entry in entries), "utf-8")


if __name__ == "__main__":
    refresh({package.rpartition("@")[0]: package for package in sys.argv[1:]})
