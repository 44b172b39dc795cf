"""Third-party files in api/static/vendor are those of their packages."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[4]
MANIFESTS = sorted((ROOT / "api/static/vendor").glob("*/manifest.json"))


def content_of(folder: Path, name: str) -> bytes:
    compressed = folder / f"{name}.gz"
    return gzip.decompress(compressed.read_bytes()) if compressed.exists() else (folder / name).read_bytes()


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.parent.name)
def test_the_files_of_a_library_are_unchanged(path: Path) -> None:
    manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
    assert path.parent.name.endswith(f"-{manifest['version']}")
    named = set(manifest["sha256"])
    assert {file.name.removesuffix(".gz") for file in path.parent.iterdir()} == named | {"manifest.json"}
    assert any("LICENSE" in name for name in named)
    hashes = {name: hashlib.sha256(content_of(path.parent, name)).hexdigest() for name in named}
    assert hashes == manifest["sha256"]


def test_the_lock_file_pins_the_libraries() -> None:
    text = (ROOT / "tools/vendor/package-lock.json").read_text("utf-8")
    assert '"resolved"' not in text
    locked = json.loads(text)["packages"]
    for path in MANIFESTS:
        manifest = json.loads(path.read_text("utf-8"))
        package = locked[f"node_modules/{manifest['package']}"]
        assert (package["version"], package["integrity"]) == (manifest["version"], manifest["integrity"])


def test_every_folder_has_a_manifest() -> None:
    assert MANIFESTS
    assert {path.parent for path in MANIFESTS} == set((ROOT / "api/static/vendor").iterdir())
