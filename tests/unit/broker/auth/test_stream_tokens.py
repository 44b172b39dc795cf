"""Stream tokens: their claims, and that only the holder of the key can sign one."""

from __future__ import annotations

import base64
import hmac
import json
import re
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.auth.stream_tokens import LONGEST, Token, decode
from broker.errors import InvalidToken, Misconfigured, TokenExpired
from broker.settings.loading import load
from broker.settings.settings import Settings

KEY = b"a key of the length that RFC 7518 recommends"
NOW = 1763790000.0
TOKEN = Token("gen_01kbn2h8v010" + "0" * 22, "anna", NOW + 0.123)
TEXT = TOKEN.encode(KEY)
CLAIMS: dict[str, Any] = {"sub": "anna", "gen": TOKEN.gid, "scope": "read", "exp": NOW + 60}


@given(st.text(min_size=1, max_size=300).filter(str.isalnum), st.integers(1, LONGEST * 1000), st.binary(min_size=1))
def test_a_token_survives_encoding_and_decoding(tenant: str, lifetime_ms: int, key: bytes) -> None:
    token = Token(TOKEN.gid, tenant, (NOW * 1000 + lifetime_ms) / 1000)
    assert decode(token.encode(key), key, NOW) == token


def test_a_token_is_short_and_needs_no_escaping_in_a_url() -> None:
    assert re.fullmatch(r"[\w.-]+", TEXT, re.ASCII)
    assert len(TEXT) < 256


def test_a_token_is_a_jwt_with_four_claims() -> None:
    options = {"verify_exp": False}
    assert jwt.get_unverified_header(TEXT) == {"alg": "HS256", "typ": "JWT"}
    assert jwt.decode(TEXT, KEY, ["HS256"], options) == {**CLAIMS, "exp": TOKEN.expires_at}


@pytest.mark.parametrize(
    "extra", [{}, {"iat": NOW + 9999, "iss": "a backend", "role": ["x"]}, {"nbf": NOW}, {"exp": int(NOW + LONGEST)}]
)
def test_a_token_signed_by_a_backend_is_valid(extra: dict[str, Any]) -> None:
    claims = {**CLAIMS, **extra}
    assert decode(jwt.encode(claims, KEY, "HS256"), KEY, NOW) == Token(TOKEN.gid, "anna", claims["exp"])


WRONG: list[dict[str, Any]] = [
    {"sub": None}, {"sub": 7}, {"gen": None}, {"gen": [TOKEN.gid]}, {"scope": None}, {"scope": "write"},
    {"scope": "read write"}, {"exp": None}, {"exp": "1763790060"}, {"exp": True}, {"exp": NOW + 86400}, {"exp": 10**30},
    {"nbf": NOW + 3600}, {"nbf": "now"}, {"aud": "another service"}, {"aud": ["another service"]},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_a_missing_or_wrong_claim_is_refused(wrong: dict[str, Any]) -> None:
    claims = {name: value for name, value in {**CLAIMS, **wrong}.items() if value is not None}
    with pytest.raises(InvalidToken) as refused:
        decode(_signed(claims), KEY, NOW)
    assert type(refused.value) is InvalidToken


def _signed(claims: dict[str, Any]) -> str:
    """Sign claims without PyJWT's own validation of them."""
    return jwt.PyJWS().encode(json.dumps(claims).encode(), KEY, "HS256")


def test_a_token_expires_exactly_at_its_expiry_time() -> None:
    assert decode(TEXT, KEY, TOKEN.expires_at - 0.001) == TOKEN
    for later in (0.0, 0.001, 86400.0):
        with pytest.raises(TokenExpired):
            decode(TEXT, KEY, TOKEN.expires_at + later)


@pytest.mark.parametrize("at", range(len(TEXT)))
def test_no_character_can_be_replaced(at: int) -> None:
    """Not even the last one, where base64 leaves two bits unused."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."
    for other in alphabet:
        if other != TEXT[at]:
            with pytest.raises(InvalidToken):
                decode(TEXT[:at] + other + TEXT[at + 1 :], KEY, NOW)


def _base64(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "..", TEXT[:-1], TEXT + "=", TEXT + "A", " " + TEXT, TEXT + "\n", TEXT.swapcase(),
        TEXT.rpartition(".")[0], TEXT.rpartition(".")[0] + ".", "." + TEXT.rpartition(".")[2], "ü" * 9,
        "\ud800.\ud800.\ud800", "a." * 50_000, _base64("[" * 1400) + ".YQ.YQ", _base64("7" * 1400) + ".YQ.YQ",
        _base64('{"alg":"none"}') + "." + TEXT.split(".")[1] + ".", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbm5hIn0.",
        jwt.encode(CLAIMS, KEY * 2, "HS512"), jwt.encode(CLAIMS, None, "none"),
        jwt.PyJWS().encode(b"[]", KEY, "HS256"), jwt.PyJWS().encode(b"\xff", KEY, "HS256"),
    ],
)  # fmt: skip
def test_a_malformed_token_is_refused(text: str) -> None:
    with pytest.raises(InvalidToken):
        decode(text, KEY, NOW)


@given(st.text())
def test_arbitrary_text_is_not_a_token(text: str) -> None:
    with pytest.raises(InvalidToken):
        decode(text, KEY, NOW)


def test_a_token_of_another_key_is_refused() -> None:
    with pytest.raises(InvalidToken):
        decode(TEXT, b"another", NOW)


def test_a_signed_token_of_the_previous_format_is_refused() -> None:
    text = "tct1_" + _base64(f"{round((NOW + 60) * 1000)} {TOKEN.gid} anna")
    signature = base64.urlsafe_b64encode(hmac.digest(KEY, text.encode(), "sha256")).rstrip(b"=").decode()
    with pytest.raises(InvalidToken):
        decode(f"{text}.{signature}", KEY, NOW)


def test_a_guessable_secret_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder of one token can try secrets on it offline, without a limit."""
    monkeypatch.setenv("TOKENCAST_SECRET", "hunter2")
    with pytest.raises(Misconfigured, match=r"^TOKENCAST_SECRET: ") as caught:
        load(Settings)
    assert "hunter2" not in caught.value.message
