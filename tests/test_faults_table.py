"""Every row of FAULTS.md and every promise of the README names an existing test."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROWS = {
    "A": 21,
    "B": 12,
    "C": 15,
    "D": 17,
    "E": 16,
    "F": 12,
    "G": 20,
    "H": 9,
    "I": 24,
    "J": 11,
    "K": 10,
    "L": 11,
    "M": 11,
    "N": 22,
}
FOUND = re.findall(r"^\| ([A-N]\d+) \|.*\| ([^|]*)\|$", (HERE / "FAULTS.md").read_text("utf-8"), re.MULTILINE)
README = (HERE.parent / "README.md").read_text("utf-8")


@cache
def defined_in(path: str) -> set[str]:
    tree = ast.parse((HERE / path).read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def missing(named: list[str]) -> list[str]:
    """The names (`path::test`) without a test."""
    parts = [name.partition("::") for name in named]
    return [f"{path}::{test}" for path, _, test in parts if not (HERE / path).exists() or test not in defined_in(path)]


def test_every_fault_has_a_row() -> None:
    assert [row for row, _ in FOUND] == [
        f"{part}{number + 1}" for part, count in ROWS.items() for number in range(count)
    ]


@pytest.mark.parametrize(("row", "shown_by"), FOUND, ids=[row for row, _ in FOUND])
def test_every_row_names_an_existing_test(row: str, shown_by: str) -> None:
    named = re.findall(r"`([\w/]+\.py::test_\w+)`", shown_by)
    assert named, row
    assert missing(named) == []


def test_the_promises_name_existing_tests() -> None:
    """Each promise of the README links to the file of its test."""
    promises = re.findall(r"^\| P(\d) \|.*", README, re.MULTILINE)
    assert promises == list("123456789")
    for line in re.findall(r"^\| P\d \|.*", README, re.MULTILINE):
        linked = re.findall(r"\[`(test_\w+)`\]\(tests/([\w/]+\.py)\)", line)
        assert linked, line
        assert missing([f"{path}::{test}" for test, path in linked]) == []
