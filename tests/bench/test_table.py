"""The table of the benchmark: medians, ratios, targets and number formats."""

from __future__ import annotations

from tests.bench.table import Row, Target, markdown, number


def row() -> Row:
    found = Row("W2", "delivered/s", (Target(0.75, False, "limit"), Target(20, False, "nchan")))
    for system, values in {"tokencast": [4e6, 6e6, 5e6], "limit": [6e6, 6.5e6, 7e6]}.items():
        for value in values:
            found.add(system, value)
    return found


def test_medians_ratios_and_targets() -> None:
    found = row()
    assert [target.met(found.medians) for target in found.targets] == [True, None]  # nchan was not measured
    found.add("nchan", 3e5)
    found.remarks.add("nchan")
    assert [target.met(found.medians) for target in found.targets] == [True, False]
    as_json = found.to_json()
    assert as_json["medians"]["tokencast"] == 5e6
    assert round(as_json["ratios"]["limit"], 2) == 0.77
    assert [target["met"] for target in as_json["targets"]] == [True, False]
    last = markdown([found]).splitlines()[-1]
    targets = "≥ 0.75 × sockets in C; ≥ 20 × nchan"
    assert last == f"| W2 | delivered/s | 5M | 6.5M (0.769 ×) | 300k* (16.7 ×) | {targets} | no |"


def test_an_absolute_target() -> None:
    found = Row("W6", "p99, ms", (Target(2, True),), {"tokencast": [1.5], "limit": [0.0]})
    assert markdown([found]).splitlines()[-1] == "| W6 | p99, ms | 1.5 | 0 | ≤ 2 | yes |"


def test_numbers_have_three_significant_digits() -> None:
    shown = {0.0123: "0.0123", 1.234: "1.23", 999.6: "1,000", 1234: "1,234", 45678: "45.7k", 5_432_100: "5.43M"}
    assert {value: number(value) for value in shown} == shown
