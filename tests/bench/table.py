"""The figures as a table: the product, its peers in the same run, and the target."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

COLUMNS = ("tokencast", "limit", "nchan", "usual", "direct")
TITLES = {"limit": "sockets in C", "usual": "usual gateway", "direct": "upstream itself"}


@dataclass(frozen=True)
class Target:
    """A minimum, or a maximum with `most`; absolute, or relative to the figure of the peer `than`."""

    bound: float
    most: bool = False
    than: str | None = None

    def __str__(self) -> str:
        than = f" × {TITLES.get(self.than, self.than)}" if self.than else ""
        return f"{'≤' if self.most else '≥'} {self.bound:,g}{than}"

    def met(self, medians: dict[str, float]) -> bool | None:
        """Whether the target is met; None if the peer was not measured."""
        against = medians.get(self.than) if self.than else 1.0
        if against is None:
            return None
        return (
            medians["tokencast"] <= self.bound * against if self.most else medians["tokencast"] >= self.bound * against
        )


@dataclass
class Row:
    """One figure of one load, with the values of every run on every system."""

    load: str
    figure: str
    targets: Sequence[Target] = ()
    values: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    remarks: set[str] = field(default_factory=set[str])

    def add(self, system: str, value: float) -> None:
        self.values.setdefault(system, []).append(value)

    @property
    def medians(self) -> dict[str, float]:
        return {system: statistics.median(values) for system, values in self.values.items()}

    def to_json(self) -> dict[str, Any]:
        medians = self.medians
        ratios = {
            name: medians["tokencast"] / value for name, value in medians.items() if value and name != "tokencast"
        }
        targets = [{"target": str(target), "met": target.met(medians)} for target in self.targets]
        return {
            "load": self.load,
            "figure": self.figure,
            "medians": medians,
            "ratios": ratios,
            "targets": targets,
            "runs": self.values,
            "remarks": sorted(self.remarks),
        }


def markdown(rows: Sequence[Row]) -> str:
    """The medians, and for each peer the ratio of the product's figure to the peer's."""
    systems = [name for name in COLUMNS if any(name in row.values for row in rows)]
    head = ["load", "figure", *(TITLES.get(name, name) for name in systems), "target", ""]
    lines = [head, ["---", "---", *["--:"] * len(systems), "---", "---"]]
    for row in rows:
        medians = row.medians
        met = [target.met(medians) for target in row.targets]
        lines.append(
            [
                *(row.load, row.figure),
                *(_cell(row, name, medians) for name in systems),
                "; ".join(map(str, row.targets)),
                "" if not met else "no" if False in met else "yes",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(row: Row, name: str, medians: dict[str, float]) -> str:
    if name not in medians:
        return ""
    value = medians[name]
    shown = number(value) + ("*" if name in row.remarks else "")
    if name == "tokencast" or not value:
        return shown
    return f"{shown} ({number(medians['tokencast'] / value)} ×)"


def number(value: float) -> str:
    """Format with three significant digits, and k or M for thousands and millions."""
    for unit, size in (("M", 1e6), ("k", 1e4)):
        if value >= size:
            return f"{value / (1e6 if unit == 'M' else 1e3):.3g}{unit}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
