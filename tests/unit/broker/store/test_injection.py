"""Everything from a model or an upstream stays inside `data:`. No text can forge a frame, an id or an ending, for a
specification-conforming parser or for the stock SDK."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from api.dialects.native.frames import NATIVE
from api.dialects.openai_chat.frames import CHAT, CHAT_WITH_USAGE
from broker.events import COMPLETED, FAILED, Event
from broker.fanout.dialect import Dialect
from broker.ids import Cursor
from worker.upstream.chunks import InvalidChunk, decode_payload

DIALECTS = [pytest.param(NATIVE, id="native"), pytest.param(CHAT, id="chat"), pytest.param(CHAT_WITH_USAGE, id="usage")]

BREAKS = ["\n", "\r", "\r\n", "\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x00", "\ufeff"]
WORDS = [
    "event: completed",
    "data: [DONE]",
    "data: {}",
    "id: 9-9",
    "retry: 1",
    ": hb",
    ":",
    "data",
    "0\r\n\r\n",
    "\ud83d",
]
HOSTILE = st.lists(st.sampled_from(BREAKS + WORDS) | st.text(max_size=5), max_size=12).map("".join)


class Seen(NamedTuple):
    id: str
    event: str
    data: str


def by_specification(stream: bytes) -> Iterator[Seen]:
    """WHATWG HTML §9.2.6: UTF-8, a leading BOM is ignored, lines end with CRLF, LF or CR, and a blank line
    dispatches an event that has data."""
    last_id = event = ""
    data: list[str] = []
    for line in re.split("\r\n|\n|\r", stream.decode("utf-8-sig")):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield Seen(last_id, event or "message", "\n".join(data))
            event, data = "", []
        elif name == "data":
            data.append(value)
        elif name == "event":
            event = value
        elif name == "id" and "\0" not in value:
            last_id = value
        else:
            assert not name, f"unexpected field: {line!r}"


def by_openai(stream: bytes) -> Iterator[Seen]:
    for seen in SSEDecoder().iter_bytes(iter([stream])):
        yield Seen(seen.id or "", seen.event or "message", seen.data)


def check(dialect: Dialect, payloads: list[bytes], message: str) -> None:
    """Frame chunks of an upstream, followed by a failure that quotes it: each is one frame with its own id, name and
    unchanged data."""
    chunks = [decode_payload(payload) for payload in payloads]
    events = [Event(Cursor(7, n), chunk.type, 0, chunk.data) for n, chunk in enumerate(chunks, start=1)]
    error = msgspec.json.encode({"error": {"message": message, "type": "server_error", "code": "upstream_error"}})
    events.append(Event(Cursor(7, len(events) + 1), FAILED, 0, error))
    shown = [event for event in events if dialect.frame(event)]
    stream = b"".join(map(dialect.frame, events))
    for read in (by_specification, by_openai):
        seen = list(read(stream))
        assert [one.id for one in seen] == [str(event.cursor) for event in shown]
        names = [event.name if dialect is NATIVE else "message" for event in shown]
        assert [one.event for one in seen] == names
        assert [json.loads(one.data) for one in seen] == [json.loads(event.data) for event in shown]
    stream.decode("ascii" if stream.isascii() else "utf-8")
    if dialect is not NATIVE:  # older SDKs split a stream with `splitlines`, which knows more line breaks
        assert [line for line in stream.decode().splitlines() if line] == stream.decode().replace("\n\n", "\n").split(
            "\n"
        )[:-1]


@pytest.mark.parametrize("dialect", DIALECTS)
@given(
    texts=st.lists(HOSTILE, min_size=1, max_size=4), ascii_only=st.booleans(), indent=st.sampled_from([None, 1, "\r"])
)
def test_no_text_forges_a_frame(dialect: Dialect, texts: list[str], ascii_only: bool, indent: Any) -> None:
    """In every encoding: escaped or raw, on one line or on many."""
    payloads: list[bytes] = []
    for text in texts:
        value = {"choices": [{"index": 0, "delta": {"content": text}}], "x": {text: text}}
        encoded = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
        try:
            payloads.append(encoded.encode())
        except UnicodeEncodeError:  # half a surrogate pair has no raw form
            payloads.append(json.dumps(value, indent=indent).encode())
    message = "".join(texts).encode("utf-8", "replace").decode()
    check(dialect, payloads, message)


@pytest.mark.parametrize("dialect", DIALECTS)
@given(
    noise=st.lists(
        st.sampled_from([b"\n", b"\r", b"\n\n", b"event: completed", b"data: x", b'"', b",", b":1", b"}", b"\xff"])
        | st.binary(max_size=4),
        max_size=10,
    )
)
def test_no_bytes_between_tokens_forge_a_frame(dialect: Dialect, noise: list[bytes]) -> None:
    """Bytes that are not valid JSON are refused, or become one frame."""
    payload = b'{"choices":[{"index":0,"delta":{"content":"x"}}],"x":%b}' % b"".join(noise)
    try:
        decode_payload(payload)
    except InvalidChunk:
        return
    check(dialect, [payload], "")


@given(reason=HOSTILE)
def test_no_finish_reason_forges_an_ending(reason: str) -> None:
    data = json.dumps({"finish_reason": reason, "usage": None}).encode()
    stream = NATIVE.frame(Event(Cursor(7, 1), COMPLETED, 0, data)) + CHAT.frame(Event(Cursor(7, 1), COMPLETED, 0, data))
    native, chat = by_specification(stream)
    assert (native.event, json.loads(native.data)["finish_reason"]) == ("completed", reason)
    assert chat == Seen("7-1", "message", "[DONE]")
