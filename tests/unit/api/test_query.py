"""Times in requests: unix seconds, or ISO 8601."""

from __future__ import annotations

import pytest

from api.query import seconds_of
from broker import InvalidRequest


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (1763790000.5, 1763790000.5),
        ("0", 0),
        ("1763790000.25", 1763790000.25),
        ("2026-01-31", 1769817600),
        ("2026-01-31T12:00:00Z", 1769860800),
        ("2026-01-31T12:00:00.5", 1769860800.5),
        ("2026-01-31 12:00:00", 1769860800),
        ("2026-01-31T12:00:00+02:00", 1769853600),
        ("2026-01-31T12:00:00 02:00", 1769853600),
        ("2026-01-31T12:00:00-02:00", 1769868000),
    ],
)
def test_a_time(value: float | str | None, seconds: float | None) -> None:
    assert seconds_of(value, "since") == seconds


@pytest.mark.parametrize(
    "text", ["now", "-1", "1e9", "٣", "2026-02-30", "2026-01-31T25:00", "1711010000123", "inf", "nan", " 1"]
)
def test_no_time(text: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        seconds_of(text, "since")
    assert raised.value.param == "since"
