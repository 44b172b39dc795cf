"""The limit on nesting."""

from __future__ import annotations

import msgspec
import pytest

from broker.json_depth import MAX_DEPTH, is_nested_too_deeply, is_too_deep


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize(
    ("text", "deep"),
    [
        (b"{}", False),
        (nested(MAX_DEPTH), False),
        (nested(MAX_DEPTH + 1), True),
        (b'{"a":' * 60 + b"[" * 41 + b"1" + b"]" * 41 + b"}" * 60, True),
        (b"[" + b",".join([nested(2)] * 1000) + b"]", False),
        (b'{"text":"' + b"[" * 1000 + b'"}', False),
        (rb'["\"' + b"[" * 1000 + rb'\\"]', False),
        (b'"unfinished ' + b"[" * 1000, True),
    ],
    ids=["empty", "at the limit", "above", "mixed", "wide", "in a string", "after an escaped quote", "not JSON"],
)
def test_the_depth_of_a_text(text: bytes, deep: bool) -> None:
    assert is_too_deep(text) is deep
    if text.startswith((b"{", b"[")):
        assert is_nested_too_deeply(msgspec.json.decode(text)) is deep


@pytest.mark.parametrize("value", ["text", 1, None, [], {}, [1, "a"]])
def test_a_flat_value_is_not_nested_too_deeply(value: object) -> None:
    assert not is_nested_too_deeply(value)
