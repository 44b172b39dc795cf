"""docs/alerts.yaml, checked by Prometheus: it is valid, and each rule fires exactly when it should."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.acceptance.documents.pages import anchors
from tests.support import ROOT

pytestmark = pytest.mark.prometheus

RULES = ROOT / "docs/alerts.yaml"
CASES = Path(__file__).with_name("alerts.test.yaml")


def promtool(*arguments: str, cwd: Path) -> None:
    """Run promtool; skips the test if it is not installed, and fails with its output."""
    binary = shutil.which("promtool")
    if binary is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run([binary, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def copy_rules(directory: Path, cases: list[dict[str, Any]]) -> None:
    """Copy the rules and these cases into a directory."""
    shutil.copy(RULES, directory)
    (directory / CASES.name).write_text(yaml.safe_dump({**yaml.safe_load(CASES.read_text("utf-8")), "tests": cases}))


def cases() -> list[dict[str, Any]]:
    return yaml.safe_load(CASES.read_text("utf-8"))["tests"]


def test_prometheus_accepts_the_rules() -> None:
    promtool("check", "rules", str(RULES), cwd=ROOT)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case["name"])
def test_a_rule_fires_exactly_when_it_should(case: dict[str, Any], tmp_path: Path) -> None:
    copy_rules(tmp_path, [case])
    promtool("test", "rules", CASES.name, cwd=tmp_path)


def test_every_rule_has_cases_with_and_without_an_alert() -> None:
    series = [one for case in cases() for one in case["input_series"]]
    assert [one for one in series if not isinstance(one["values"], str)] == []  # YAML reads 0x20 as a number
    tested = [(one["alertname"], bool(one["exp_alerts"])) for case in cases() for one in case["alert_rule_test"]]
    rules = [rule["alert"] for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]
    assert set(tested) == {(rule, fires) for rule in rules for fires in (True, False)}


def test_every_rule_names_a_section_of_the_documentation() -> None:
    home = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Homepage"]
    known = anchors(ROOT / "docs/troubleshooting.md")
    for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"]:
        for rule in group["rules"]:
            page, _, section = rule["annotations"]["runbook_url"].partition("#")
            assert page == f"{home}/blob/main/docs/troubleshooting.md", rule["alert"]
            assert section in known, rule["alert"]
