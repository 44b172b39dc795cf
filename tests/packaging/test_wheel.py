"""The content and the versions of the wheels."""

from __future__ import annotations

import re
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import tokencast_client
from broker import __version__
from tests.packaging.conftest import Installed
from tests.support import CLIENT, ROOT

PACKAGES = ("api", "broker", "worker")


def test_the_wheel_contains_the_packages_and_the_entry_point(installed: Installed) -> None:
    """Including Lua scripts, the dashboard and `py.typed`, and without tests and other modules."""
    ours = {path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()}
    expected = {path.relative_to(ROOT).as_posix() for path in ours if "__pycache__" not in path.parts}
    assert {f"{name}/py.typed" for name in PACKAGES} <= expected
    with ZipFile(installed.wheel) as wheel:
        contained = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert contained == expected | {"tokencast_broker.py"}


def test_the_wheel_of_the_client_contains_one_package(installed: Installed) -> None:
    files = {path for path in (CLIENT / "tokencast_client").rglob("*") if path.is_file()}
    with ZipFile(installed.client_wheel) as wheel:
        contained = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert contained == {path.relative_to(CLIENT).as_posix() for path in files if "__pycache__" not in path.parts}
    assert "tokencast_client/py.typed" in contained


def test_both_wheels_have_the_same_version(installed: Installed) -> None:
    """The broker requires exactly this client, which requires only the HTTP library."""
    broker, client = metadata(installed.wheel), metadata(installed.client_wheel)
    assert (broker["name"], client["name"]) == ("tokencast-broker", "tokencast-client")
    assert broker["version"] == client["version"] == tokencast_client.__version__ == __version__
    assert f"tokencast-client=={__version__}" in broker["requires"]
    assert [re.split(r"\W", name)[0] for name in client["requires"]] == ["httpx2"]


def metadata(path: Path) -> dict[str, str | list[str]]:
    with ZipFile(path) as wheel:
        [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        found = message_from_bytes(wheel.read(name))
    return {"name": found["Name"], "version": found["Version"], "requires": found.get_all("Requires-Dist", [])}
