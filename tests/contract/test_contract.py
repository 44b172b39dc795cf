"""The interface stays the same: a fixed list of exchanges with real processes is compared with a recording.

There is one golden file per area, in `golden/`. If a difference is intended, write them again and commit them with
the change:

    python -m tests.contract              # write golden/
    python -m tests.contract DIRECTORY    # write to another directory, to compare two trees with `diff -r`

Values that differ between runs, and human-readable texts, are masked (`masks.py`). Everything else counts: header names
and values, status codes, the order of JSON fields, the bytes of event streams, keys in Redis, metrics, settings and
options. Only `wording.txt` contains human-readable texts: a difference in it is not a change of the interface.
"""

from __future__ import annotations

import difflib

import pytest

from tests.contract.areas import AREAS, GOLDEN, recorded

pytestmark = pytest.mark.timeout(300)  # the fixture records all areas before the first comparison
SHOWN = 200  # maximum lines of a shown difference


@pytest.fixture(scope="module")
async def texts() -> dict[str, str | Exception]:
    return await recorded()


@pytest.mark.parametrize("area", AREAS)
async def test_the_interface_matches_its_recording(texts: dict[str, str | Exception], area: str) -> None:
    text = texts[area]
    if isinstance(text, Exception):
        raise text
    before = (GOLDEN / f"{area}.txt").read_text("utf-8")
    changed = list(difflib.unified_diff(before.splitlines(), text.splitlines(), "before", "now", lineterm="", n=6))
    if changed:
        pytest.fail("\n".join(changed[:SHOWN]), pytrace=False)
    assert text == before


def test_every_golden_file_has_an_area() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(AREAS)
