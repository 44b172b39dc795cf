"""The parts of the Python client that need no gateway."""

from __future__ import annotations

import inspect
import json
import time
from pathlib import Path
from typing import Any

import pytest

from broker import records
from broker.chunks import text_of_chunk
from broker.events import FINAL_STATUSES, NAMES
from broker.webhooks.signing import Signer
from tokencast_client import (
    TERMINAL_EVENTS,
    AsyncClient,
    Client,
    Event,
    Generation,
    InvalidRequest,
    Misconfigured,
    Transcript,
    WebhookVerificationError,
    generation_request,
    verify_webhook,
)
from tokencast_client import records as client_records
from tokencast_client.reconnect import Attempts, growing
from tokencast_client.records import text_of, to_generation
from tokencast_client.streams.sse import Decoder, Frame

GENERATION = {
    "id": "gen_01kbn2h8v010" + "0" * 22,
    "object": "generation",
    "status": "completed",
    "model": "sim",
    "created_at": 1.0,
    "attempt": 1,
    "cursor": "7-3",
    "queue": None,
    "new_field": {"of": "a later version"},
}
OLD, NEW = "whsec_b2xkb2xkb2xkb2xkb2xkb2xk", "whsec_bmV3bmV3bmV3bmV3bmV3bmV3"


def public(kind: type) -> dict[str, inspect.Signature]:
    return {name: inspect.signature(value) for name, value in vars(kind).items() if not name.startswith("_")}


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    sync, not_blocking = public(Client), public(AsyncClient)
    not_blocking["close"] = not_blocking.pop("aclose")
    assert sync.keys() == not_blocking.keys()
    for name, signature in sync.items():
        assert signature.parameters == not_blocking[name].parameters, name
        assert inspect.getdoc(getattr(Client, name)) == inspect.getdoc(getattr(AsyncClient, name, AsyncClient.aclose))


@pytest.mark.parametrize(
    ("record", "theirs"),
    [
        (Generation, records.Generation),
        (client_records.QueueState, records.QueueState),
        (client_records.Queue, records.QueueRecord),
        (client_records.QueueLevel, records.QueueLevel),
        (client_records.Group, records.Group),
        (client_records.RetryResult, records.RetryResult),
        (client_records.Delivery, records.Delivery),
    ],
)
def test_records_have_the_fields_of_the_gateway(record: Any, theirs: Any) -> None:
    ours = set(record.__dataclass_fields__) - {"raw"}
    assert ours == set(theirs.__struct_fields__) - {"object"}


def test_events_and_statuses_are_those_of_the_gateway() -> None:
    assert FINAL_STATUSES == client_records.FINAL_STATUSES
    assert set(NAMES.values()) >= TERMINAL_EVENTS


def test_unknown_fields_are_kept_and_missing_ones_have_defaults() -> None:
    generation = to_generation(GENERATION)
    assert generation.raw["new_field"] == {"of": "a later version"}
    assert (generation.priority, generation.metadata, generation.text, generation.ended) == (3, {}, "", True)
    with pytest.raises(ValueError, match="'status' is missing"):
        to_generation({"id": "gen_x"})


BLOCKS = (
    "\ufeff: hb\n\nid: 7-1\nevent: chunk\ndata: {\ndata: }\n\nretry: 250\n\n"
    "id: 7-2\r\ndata:Grüße\r\n\r\nid: 7-3\n\ndata: cut"
)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_events_are_decoded_from_pieces_of_any_size(size: int) -> None:
    """The id stays, a multi-byte character can be divided, and an incomplete block is dropped."""
    data, decoder = BLOCKS.encode(), Decoder()
    frames = [frame for at in range(0, len(data), size) for frame in decoder.feed(data[at : at + size])]
    assert frames == [
        Frame("7-1", "chunk", "{\n}", None),
        Frame("7-1", "message", "", 250),
        Frame("7-2", "message", "Grüße", None),
        Frame("7-3", "message", "", None),
    ]


@pytest.mark.parametrize(
    "chunk",
    [
        {"choices": [{"index": 0, "delta": {"content": "a"}}, {"index": 1, "delta": {"content": "b"}}]},
        {"choices": [{"delta": {"content": "a"}}, {"delta": {"content": "b"}}]},
        {"choices": [{"index": 0, "delta": {"content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}}]},
        {"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}}]},
        {"choices": [{"index": 0, "delta": {"content": None}}]},
        {"choices": [{"index": 0, "delta": None}]},
        {"choices": []},
        {"usage": {}},
    ],
)
def test_the_text_of_a_chunk_is_that_of_the_gateway(chunk: dict[str, Any]) -> None:
    assert text_of(chunk) == text_of_chunk(chunk)


def test_a_transcript_begins_again_after_a_reset() -> None:
    def chunk(text: str) -> Event:
        return Event("7-1", "chunk", json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}))

    transcript = Transcript()
    assert [transcript.add(event) for event in (Event("7-0", "started", "{}"), chunk("a"), chunk(""))] == [0, 1, 0]
    assert transcript.add(Event("8-0", "reset", "{}"))
    for half in ("b\ud83d", "\ude00"):
        transcript.add(chunk(half))
    assert transcript.text == "b😀"


def test_a_request_has_our_fields_in_one_object() -> None:
    body = {"model": "a", "messages": [], "metadata": {"old": "1"}, "tokencast": {"group": "g"}, "priority": 7}
    made = generation_request(body, model="b", priority=1, metadata={"a": "b"}, webhook="https://x", temperature=0)
    assert made == {
        "model": "b",
        "messages": [],
        "priority": 7,
        "temperature": 0,
        "tokencast": {"group": "g", "priority": 1, "metadata": {"a": "b"}, "webhook": {"url": "https://x"}},
    }
    assert generation_request(body) == body
    with pytest.raises(InvalidRequest):
        generation_request({"tokencast": []}, priority=1)


def test_delays_grow_and_are_bounded() -> None:
    delays = [growing(failures) for failures in (0, 1, 2, 10, 5000)]
    assert all(0.125 * 2**n <= delay <= 0.25 * 2**n for n, delay in enumerate(delays[:3]))
    assert all(2.5 <= delay <= 5 for delay in delays[3:])


def test_only_what_can_help_is_repeated() -> None:
    assert Attempts(2, repeatable=False).delay() < 0
    attempts = Attempts(2, repeatable=True)
    assert attempts.delay(404) < 0
    assert attempts.delay(429, retry_after=60) < 0, "that is left to the caller"
    assert attempts.delay(503, should_retry=False) < 0
    assert 0 < attempts.delay() <= 0.25
    assert attempts.delay(429, retry_after=3) == 3
    assert attempts.delay() < 0


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "ftp://a",
        "http://",
        "http://u:p@a",
        "http://a/v1/",
        "http://a?b=c",
        "http://a:b",
        "http://a b",
    ],
)
def test_an_unusable_address_is_refused(url: str) -> None:
    with pytest.raises(Misconfigured, match="base_url"):
        Client(url)


def test_the_key_can_be_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("secret\n")
    monkeypatch.setenv("TOKENCAST_API_KEY_FILE", str(tmp_path / "key"))
    with Client() as client:
        assert client._headers["authorization"] == "Bearer secret"


def signed(*secrets: str, at: float | None = None) -> tuple[bytes, dict[str, str]]:
    """A delivery as the gateway sends it."""
    event = {"type": "generation.completed", "timestamp": "2026-11-26T18:20:28.714Z", "data": GENERATION}
    body = json.dumps(event).encode()
    return body, Signer(secrets).headers("msg_1", body, int(time.time() if at is None else at))


def test_a_webhook_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one of several secrets and signatures, and header names in any case."""
    body, headers = signed(OLD, NEW)
    event = verify_webhook(body, {name.title(): value for name, value in headers.items()}, NEW)
    assert (event.id, event.type, event.data.status) == ("msg_1", "generation.completed", "completed")
    body, headers = signed(OLD)
    assert verify_webhook(body.decode(), headers, [NEW, OLD]).raw["timestamp"].startswith("2026")
    monkeypatch.setenv("TOKENCAST_WEBHOOK_SECRET", f"{NEW},{OLD}")
    assert verify_webhook(body, headers).data.id == GENERATION["id"]


def test_a_forged_or_old_webhook_is_refused() -> None:
    body, headers = signed(NEW)
    for wrong_body, wrong_headers, secret in (
        (body, headers, OLD),
        (body + b" ", headers, NEW),
        (body, {**headers, "webhook-id": "msg_2"}, NEW),
        (body, {**headers, "webhook-signature": "v1,"}, NEW),
        (body, {**headers, "webhook-signature": headers["webhook-signature"].replace("v1,", "v2,")}, NEW),
        (body, {"webhook-id": "msg_1"}, NEW),
        (*signed(NEW, at=time.time() - 301), NEW),
        (*signed(NEW, at=time.time() + 310), NEW),
    ):
        with pytest.raises(WebhookVerificationError):
            verify_webhook(wrong_body, wrong_headers, secret)
    for secret in ("", "whsec_!"):
        with pytest.raises(Misconfigured):
            verify_webhook(body, headers, secret)
