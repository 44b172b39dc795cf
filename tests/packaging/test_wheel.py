"""The content of the wheel."""

from __future__ import annotations

from zipfile import ZipFile

from tests.packaging.conftest import Installed
from tests.support import ROOT

PACKAGES = ("api", "broker", "worker")


def test_the_wheel_contains_the_packages_and_the_entry_point(installed: Installed) -> None:
    """Including Lua scripts, the dashboard and `py.typed`, and without tests and other modules."""
    ours = {path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()}
    expected = {path.relative_to(ROOT).as_posix() for path in ours if "__pycache__" not in path.parts}
    assert {f"{name}/py.typed" for name in PACKAGES} <= expected
    with ZipFile(installed.wheel) as wheel:
        contained = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert contained == expected | {"tokencast_broker.py"}


def test_the_wheel_is_named_after_the_distribution(installed: Installed) -> None:
    assert installed.wheel.name.startswith("tokencast_broker-")
