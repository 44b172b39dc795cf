"""What a stream token says, and that nobody else can say it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.auth.stream_tokens import VERSION, Token, verified
from broker.errors import InvalidToken, Misconfigured
from broker.settings.settings import Settings, load

KEY = b"a key"
TOKEN = Token("gen_01kbn2h8v010" + "0" * 22, "anna", 1763790000.123)
TEXT = TOKEN.signed(KEY)


@given(st.text(min_size=1).filter(str.isalnum), st.integers(0, 10**13), st.binary(min_size=1))
def test_it_says_what_it_was_given(tenant: str, expires_ms: int, key: bytes) -> None:
    token = Token(TOKEN.gid, tenant, expires_ms / 1000)
    assert verified(key, token.signed(key)) == token


def test_it_needs_no_escaping_in_a_url_and_is_short() -> None:
    assert re.fullmatch(r"tct1_[\w.-]+", TEXT, re.ASCII)
    assert len(TEXT) < 150


@pytest.mark.parametrize("at", range(len(TEXT)))
def test_no_character_can_be_another(at: int) -> None:
    """Not even the last one, of which base64 leaves two bits unused."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."
    for other in alphabet:
        if other != TEXT[at]:
            with pytest.raises(InvalidToken):
                verified(KEY, TEXT[:at] + other + TEXT[at + 1 :])


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "..", VERSION, TEXT[:-1], TEXT + "=", TEXT + "A", " " + TEXT, TEXT.swapcase(), TEXT.rpartition(".")[0],
        TEXT.rpartition(".")[0] + ".", "." + TEXT.rpartition(".")[2], "ü" * 9, "\ud800.\ud800", "a." * 50_000,
        "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbm5hIn0.",
    ],
)  # fmt: skip
def test_any_other_text_is_none(text: str) -> None:
    with pytest.raises(InvalidToken):
        verified(KEY, text)


@given(st.text())
def test_whatever_is_written_is_none(text: str) -> None:
    with pytest.raises(InvalidToken):
        verified(KEY, text)


def test_another_key_s_is_none() -> None:
    with pytest.raises(InvalidToken):
        verified(b"another", TEXT)


def test_another_version_s_is_none_although_it_is_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.auth.stream_tokens.VERSION", "tct2_")
    later = TOKEN.signed(KEY)
    monkeypatch.undo()
    with pytest.raises(InvalidToken):
        verified(KEY, later)


def test_a_secret_that_can_be_guessed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has one token can try secrets on it for as long as it takes."""
    monkeypatch.setenv("TOKENCAST_SECRET", "hunter2")
    with pytest.raises(Misconfigured, match=r"^TOKENCAST_SECRET: ") as caught:
        load(Settings)
    assert "hunter2" not in caught.value.message
