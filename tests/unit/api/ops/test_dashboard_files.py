"""The dashboard's folders: their size, their import order and their routes."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import pytest

from api.ops.dashboard import pages
from tests.support import ROOT
from tests.vendored import LICENSES, VENDOR, digest, read_lock

STATIC = ROOT / "api/static"
MAY_IMPORT = {
    "data": {"data"},
    "ui": {"data", "ui"},
    "detail": {"data", "ui", "detail", "vendor"},
    "views": {"data", "ui", "detail", "views"},
}
MODULES = sorted(path for folder in MAY_IMPORT for path in (STATIC / folder).iterdir())


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_module_imports_existing_files_of_lower_layers(path: PurePosixPath) -> None:
    text = (STATIC / path).read_text()
    for target in re.findall(r'^import .+ from "(\..+)";$', text, re.MULTILINE):
        imported = (STATIC / path.parent / target).resolve()
        assert imported.is_file(), target
        assert imported.parent.name in MAY_IMPORT[path.parent.name], target


def test_a_folder_has_at_most_a_dozen_files() -> None:
    for folder in [STATIC, *(entry for entry in STATIC.iterdir() if entry.is_dir())]:
        assert sum(entry.is_file() for entry in folder.iterdir()) <= 12, folder


def test_the_libraries_are_those_of_the_lock() -> None:
    """Byte for byte, with their licences, and loaded by nothing that every visitor loads."""
    locked = read_lock()
    assert {entry.file for entry in locked} | {"lock.txt", "licenses.txt"} == {
        path.name for path in VENDOR.iterdir() if path.is_file()
    }
    for entry in locked:
        assert digest((VENDOR / entry.file).read_bytes()) == entry.sha256, entry.file
        assert f"{entry.file}: {entry.package}\n" in LICENSES.read_text("utf-8")
    static = re.compile(r'^import .+ from "\.\./(?:vendor/.+|detail/markdown\.js)";$', re.MULTILINE)
    assert [path.name for path in MODULES if static.search(path.read_text("utf-8"))] == ["markdown.js"]


def test_every_file_has_a_route() -> None:
    files = {f"/static/{path.relative_to(STATIC)}" for path in STATIC.rglob("*") if path.is_file()}
    assert {route.path for route in pages()} == files - {"/static/index.html"} | {"/", "/favicon.ico"}
