"""The simulated model's text is a pure function of the seed, and every directive is documented."""

import ast
import json
import re
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import worker.simulator as package
from worker.simulator import text
from worker.simulator.directives import KEYS, STYLES, BadRequest, Directive, parse, seed_of
from worker.simulator.faults import FAULTS
from worker.simulator.text import TROUBLE, iter_pieces, pieces, split_surrogates, tool_calls

seeds = st.integers(min_value=0, max_value=2**31)


@given(seeds, st.integers(0, 200), st.booleans())
def test_a_text_is_deterministic_and_has_the_requested_number_of_pieces(seed: int, length: int, unicode: bool) -> None:
    text_pieces = pieces(seed, length, unicode=unicode)
    assert len(text_pieces) == length
    assert all(text_pieces)
    assert text_pieces == pieces(seed, length, unicode=unicode) == list(iter_pieces(seed, length, unicode=unicode))


@given(seeds, st.integers(1, 150), st.integers(1, 150))
def test_a_shorter_text_is_the_beginning_of_a_longer_one_except_its_full_stop(seed: int, some: int, more: int) -> None:
    short, long = pieces(seed, some), pieces(seed, some + more)
    assert short[:-1] == long[: some - 1]
    assert short[-1].endswith(".")
    assert long[some - 1].startswith(short[-1].rstrip("."))


def test_the_text_never_changes_between_releases() -> None:
    """Recorded texts and other implementations rely on it."""
    assert "".join(pieces(7, 23)) == (
        "1. After the rain, the early kettle carries the archive.\n"
        "2. The silver market remembers the letter.\n"
        "3. By evening, the borrowed railway."
    )
    everything = [pieces(1, 500, unicode=True), pieces(2, 90, voice="reasoning"), pieces(3, 90, voice="refusal")]
    digest = sha256(json.dumps([everything, [call.pieces for call in tool_calls(4, 3)]]).encode()).hexdigest()
    assert digest[:16] == "c533a9dd37c9b91e"


def test_sentences_are_numbered_and_distinct() -> None:
    lines = "".join(pieces(11, 1000)).split("\n")
    assert [int(line.split(".")[0]) for line in lines] == list(range(1, len(lines) + 1))
    assert len(set(lines)) == len(lines) > 50


def test_neighbouring_seeds_and_other_voices_give_different_texts() -> None:
    text_pieces = [pieces(seed, 60, voice=voice) for seed in range(50) for voice in ("content", "reasoning", "refusal")]
    assert len({"".join(each) for each in text_pieces}) == 150


@given(seeds)
def test_unicode_includes_every_special_character_within_68_pieces(seed: int) -> None:
    whole = "".join(pieces(seed, 4 * len(TROUBLE) + 1, unicode=True))
    assert not [each for each in TROUBLE if each not in whole]


@given(seeds, st.integers(0, 150))
def test_split_surrogates_keeps_the_text_and_the_number_of_pieces(seed: int, length: int) -> None:
    whole = pieces(seed, length, unicode=True)
    halves = list(split_surrogates(whole))
    assert len(halves) == len(whole)
    joined = "".join(halves).encode("utf-16", "surrogatepass").decode("utf-16")
    assert joined == "".join(whole)
    assert length < 68 or any("\ud800" <= half[-1] <= "\udbff" for half in halves)


def test_tool_calls_have_json_arguments_in_several_pieces() -> None:
    calls = tool_calls(5, 4)
    assert len({call.id for call in calls}) == 4
    for call in calls:
        assert len(call.pieces) > 2
        assert set(json.loads(call.arguments)) == {"where", "note", "times"}


def test_the_text_needs_only_the_standard_library() -> None:
    tree = ast.parse(Path(text.__file__).read_text())
    imports = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    imports |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imports
    assert {name.split(".")[0] for name in imports} <= sys.stdlib_module_names


def test_a_directive_overrides_only_its_keys_of_a_preset() -> None:
    preset = {"reasoning": 12, "speed": 4.0}
    assert parse("[[sim speed=0 stamp]] and [[sim stamp=0 unicode=1]]", preset) == Directive(
        reasoning=12, speed=0, unicode=True
    )
    assert parse("no directive, [[simple]] brackets") == Directive()


@pytest.mark.parametrize(
    "words", ["colour=red", "length=-1", "length=x", "speed=nan", "shape=round", "stamp=2", "fault=none"]
)
def test_an_invalid_directive_is_an_error(words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        parse(f"[[sim {words}]]")


def test_the_seed_is_computed_from_the_messages_without_directives() -> None:
    plain = seed_of([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}])
    parts = [{"type": "text", "text": "Hello [[sim fault=rst at=3]]"}, {"type": "image_url", "image_url": {"url": "x"}}]
    assert seed_of([{"role": "system", "content": "Be kind."}, {"role": "user", "content": parts}]) == plain
    assert seed_of([{"role": "user", "content": "Hello"}]) != plain
    assert seed_of([{"role": "user", "content": "Hello"}]) == 248489973


def test_every_key_fault_and_style_is_documented() -> None:
    assert package.__doc__
    keys, faults, styles = re.split(r"^(?:FAULTS|STYLES) ", package.__doc__.split("\nKEYS ")[1], flags=re.MULTILINE)
    assert set(re.findall(r"^(\w+) ", keys, flags=re.MULTILINE)) == set(KEYS) == set(Directive.__slots__)
    named = {name for line in re.findall(r"^([\w-]+(?: \d{3})*) ", faults, flags=re.MULTILINE) for name in line.split()}
    assert named == set(FAULTS)
    assert set(re.findall(r"([\w-]+)(?:,|$)", styles.split("\n\n")[0].split(")")[1])) == set(STYLES)
