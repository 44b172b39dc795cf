"""The README's examples and their output, run in their order as one new user's session."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator

import pytest

from tests.acceptance.documents.pages import Reader, blocks, reading
from tests.support import ROOT
from worker.simulator.directives import seed_of
from worker.simulator.text import pieces

pytestmark = pytest.mark.timeout(400)  # the first test waits for the whole session

README = ROOT / "README.md"
ANSWER = "".join(pieces(seed_of([{"role": "user", "content": "Explain the GIL in CPython."}]), 60))


@pytest.fixture(scope="module")
async def reader() -> AsyncGenerator[Reader, None]:
    async with reading(README) as reader:
        yield reader


async def test_make_run_starts_everything(reader: Reader) -> None:
    first = blocks(README)[0]
    assert first.text == "make run\n"
    assert "Tokencast is ready." in reader.outputs[first]
    assert "SIMULATED" in reader.outputs[first]


@pytest.mark.parametrize("command", ["python ask.py", pytest.param("node ask.mjs", marks=pytest.mark.node)])
async def test_the_sdk_examples(reader: Reader, command: str) -> None:
    """tests/acceptance/openai/test_openai_python.py and …_node.py run them with every SDK."""
    printed = output_of(reader, command)
    if printed is None:
        pytest.skip(f"skipped: {'; '.join(reader.missing_tools)}")
    assert printed == ANSWER + "\n"


async def test_the_curl_examples(reader: Reader) -> None:
    """Enqueue and follow; then resume, read and delete the same generation."""
    printed = output_of(reader, "curl -s")
    if printed is None:
        pytest.skip(f"skipped: {'; '.join(reader.missing_tools)}")
    assert printed.count("event: created") == 1  # the second response begins after this event
    assert printed.count("event: completed") == 2
    assert '"status":"completed"' in printed


async def test_the_command_line_examples(reader: Reader) -> None:
    printed = output_of(reader, "tokencast enqueue")
    assert printed is not None
    assert ANSWER in printed
    listed = set(re.findall(r"^gen_\w{34}(?= +completed)", printed, re.MULTILINE))
    asked = [
        command for command in ("python ask.py", "node ask.mjs", "tokencast enqueue") if output_of(reader, command)
    ]
    assert len(listed) == len(asked)  # curl's generation was deleted


def output_of(reader: Reader, holding: str) -> str | None:
    """The output of the shell block that contains this text; None if it was not run."""
    found = [printed for block, printed in reader.outputs.items() if block.language == "sh" and holding in block.text]
    return found[0] if found else None
