"""Ids and cursors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import GenerationNotFound, InvalidCursor
from broker.ids import (
    SHARDS,
    Cursor,
    check_id,
    created_ms,
    created_within,
    idempotency_shard,
    new_id,
    parse_cursor,
    shard_of,
)


def crc16(data: bytes) -> int:
    """Redis Cluster's key slot function (CRC-16/XMODEM), before the modulus."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = ((crc << 1) ^ 0x1021) & 0xFFFF if crc & 0x8000 else (crc << 1) & 0xFFFF
    return crc


def test_shards_are_spread_evenly_over_the_slots() -> None:
    slots = [crc16(shard.encode()) % 16384 for shard in SHARDS]
    assert all(abs(slot - (position * 512 + 256)) <= 16 for position, slot in enumerate(slots))
    assert len(set(SHARDS)) == 32


@given(st.integers(0, 32**10 - 1), st.integers(0, 32**10 - 1))
def test_ids_contain_their_time_and_sort_by_it(first: int, second: int) -> None:
    a, b = new_id(first, "t"), new_id(second, "t")
    assert len(a) == len(b) == 38
    assert (created_ms(a), created_ms(b)) == (first, second)
    if first != second:
        assert (a < b) == (first < second)


def test_an_idempotency_key_determines_the_shard() -> None:
    """The record and the generation must be in the same slot, for any key and tenant."""
    for key in map(str, range(50)):
        assert shard_of(new_id(1, "t", key)) == idempotency_shard("t", key)
    assert len({idempotency_shard("t", str(key)) for key in range(500)}) == 32


@pytest.mark.parametrize(
    "text", ["", "gen_", "gen_" + "0" * 33, "gen_" + "0" * 34, "gen_" + "u" * 34, "x" * 38, "gen_é"]
)
def test_a_malformed_id_is_not_found(text: str) -> None:
    with pytest.raises(GenerationNotFound):
        check_id(text)


@given(st.text())
def test_a_cursor_consists_of_two_integers(text: str) -> None:
    try:
        cursor = parse_cursor(text)
    except InvalidCursor:
        return
    attempt, seq = text.split("-")
    assert cursor == Cursor(int(attempt), int(seq))


@given(st.integers(0, 10**16 - 1), st.integers(0, 10**10 - 1))
def test_a_cursor_survives_formatting_and_parsing(attempt: int, seq: int) -> None:
    assert parse_cursor(str(Cursor(attempt, seq))) == Cursor(attempt, seq)


@given(st.integers(0, 32**10 - 1), st.integers(5, 38))
def test_the_beginning_of_an_id_says_when_it_was_created(ms: int, length: int) -> None:
    first, before = created_within(new_id(ms, "t")[:length])
    assert first <= ms < before
    assert before - first == 32 ** max(0, 14 - length)


@pytest.mark.parametrize("text", ["", "gen_", "gen_I", "gen_01u", "order=17", "Gen_0"])
def test_another_text_says_nothing_about_the_time(text: str) -> None:
    assert created_within(text) == (0, 0)
