"""The table of merge cases, checked against the dashboard's own code."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.broker.completion.cases import CASES, Json, calls_of, choices_of, chunks_of, text_of_case
from tests.integration.broker.completion.dashboard import sections

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[str]]]:
    chunks = {name: chunks_of(case) for name, case in CASES.items()}
    return sections(chunks, tmp_path_factory.mktemp("dashboard"))


@pytest.mark.parametrize("name", CASES)
def test_the_dashboard_shows_the_merged_message(name: str, shown: dict[str, list[list[str]]]) -> None:
    case = CASES[name]
    found = [[title, paired(text)] for title, text in shown[name] if not title.startswith("2. ")]
    assert found == [*expected(case), ["finish", finish_of(case)]]


def expected(case: Json) -> list[list[str]]:
    """The headings and texts of choice 0."""
    refusal = case.get("refusal", "")
    texts = [["Reasoning", case.get("reasoning", "")], ["Answer", text_of_case(case)], ["Refusal", refusal]]
    calls = [[f"Tool call: {name}", arguments] for name, arguments in calls_of(case)]
    return [section for section in texts if section[1]] + calls


def finish_of(case: Json) -> Any:
    return next((choice["finish_reason"] for choice in choices_of(case)), None) or ""


def paired(text: str) -> str:
    """The text as a page shows it: half a surrogate pair is U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
