"""JSON that is parsed and dumped in pieces equals the result of one call."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import json_pieces as pieces

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=40,
)


@pytest.fixture(autouse=True, scope="module")
def _small_pieces() -> Any:
    """Split everything that can be split."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE", 4)
        patch.setattr(pieces, "_ITEMS", 3)
        patch.setattr(pieces, "_SPARSE", 0)
        yield


@given(VALUES, st.sampled_from([None, 1]), st.booleans())
def test_decoding_in_pieces_gives_the_same_value(value: Any, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()
    assert pieces.decode(text) == value


@given(VALUES)
def test_dumping_in_pieces_gives_the_same_bytes(value: Any) -> None:
    """Idempotency records contain their hash, so every version recognizes a repeated request."""
    whole = json.dumps(value, sort_keys=True, separators=(",", ":"))
    assert "".join(pieces.dump(value)) == pieces.dump_whole(value) == whole


@pytest.mark.parametrize(
    "text", [b'{"a":1,"b":}', b'{"a":[1,2,x]}', b'["long enough", "\xff"]', b'["a","b"', b'{"a" 1}', b"[NaN, 1]"]
)
def test_invalid_json_is_refused(text: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        pieces.decode(text)
