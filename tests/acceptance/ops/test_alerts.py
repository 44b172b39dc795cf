"""docs/alerts.yaml as Prometheus reads it: valid, and each rule fires when it should and only then."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import ROOT

pytestmark = pytest.mark.prometheus

RULES = ROOT / "docs/alerts.yaml"
CASES = Path(__file__).with_name("alerts.test.yaml")


def promtool(*arguments: str, cwd: Path) -> None:
    """Skips where there is none; fails with what it says."""
    binary = shutil.which("promtool")
    if binary is None:
        pytest.skip("no promtool on this machine")
    done = subprocess.run([binary, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def beside(directory: Path, cases: list[dict[str, Any]]) -> None:
    """The rules, and some of the cases."""
    shutil.copy(RULES, directory)
    (directory / CASES.name).write_text(yaml.safe_dump({**yaml.safe_load(CASES.read_text("utf-8")), "tests": cases}))


def cases() -> list[dict[str, Any]]:
    return yaml.safe_load(CASES.read_text("utf-8"))["tests"]


def test_prometheus_takes_the_rules() -> None:
    promtool("check", "rules", str(RULES), cwd=ROOT)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case["name"])
def test_a_rule_fires_when_it_should_and_only_then(case: dict[str, Any], tmp_path: Path) -> None:
    beside(tmp_path, [case])
    promtool("test", "rules", CASES.name, cwd=tmp_path)


def test_every_rule_has_series_in_which_it_fires_and_in_which_it_does_not() -> None:
    series = [one for case in cases() for one in case["input_series"]]
    assert [one for one in series if not isinstance(one["values"], str)] == []  # YAML reads 0x20 as a number
    asked = [(one["alertname"], bool(one["exp_alerts"])) for case in cases() for one in case["alert_rule_test"]]
    rules = [rule["alert"] for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]
    assert set(asked) == {(rule, fires) for rule in rules for fires in (True, False)}
