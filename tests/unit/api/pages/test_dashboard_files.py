"""The dashboard's folders: their size, their import order and their routes."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import pytest

from api.pages.dashboard import pages
from api.pages.vendor import vendor_routes
from tests.support import ROOT

STATIC = ROOT / "api/static"
VENDOR = STATIC / "vendor"
MAY_IMPORT = {
    "data": {"data"},
    "ui": {"data", "ui"},
    "list": {"data", "ui", "list"},
    "detail": {"data", "ui", "detail", "vendor"},
    "views": {"data", "ui", "list", "detail", "views"},
}
MODULES = sorted(path for folder in MAY_IMPORT for path in (STATIC / folder).iterdir())


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_module_imports_existing_files_of_lower_layers(path: PurePosixPath) -> None:
    text = (STATIC / path).read_text()
    for target in re.findall(r'^import .+ from "(\..+)";$', text, re.MULTILINE):
        imported = (STATIC / path.parent / target).resolve()
        assert imported.is_file() or imported.with_name(f"{imported.name}.gz").is_file(), target
        assert imported.relative_to(STATIC).parts[0] in MAY_IMPORT[path.parent.name], target


def test_a_folder_has_at_most_a_dozen_files() -> None:
    for folder in [STATIC, *(entry for entry in STATIC.iterdir() if entry.is_dir())]:
        assert sum(entry.is_file() for entry in folder.iterdir()) <= 12, folder


def test_no_library_is_loaded_by_every_visitor() -> None:
    static = re.compile(r'^import .+ from "\.\./(?:vendor/.+|detail/markdown\.js)";$', re.MULTILINE)
    assert [path.name for path in MODULES if static.search(path.read_text("utf-8"))] == ["markdown.js"]


def test_every_file_has_a_route() -> None:
    """Except for licences and the like of third-party files."""
    served = [path for path in STATIC.rglob("*") if path.suffix in (".html", ".js", ".css", ".gz")]
    assert {path for path in STATIC.rglob("*") if path.is_file()} - {*served, *VENDOR.rglob("*")} == set()
    files = {f"/static/{path.relative_to(STATIC)}".removesuffix(".gz") for path in served}
    routes = {route.path for route in (*pages(), *vendor_routes())}
    assert routes == files - {"/static/index.html"} | {"/", "/favicon.ico"}
