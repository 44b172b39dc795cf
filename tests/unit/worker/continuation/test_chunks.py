"""The chunks of a continued call, as the log gets them."""

from __future__ import annotations

import json
from typing import Any

from broker.events import USAGE
from worker.continuation.chunks import Continuation, identity_of
from worker.continuation.overlap import Overlap
from worker.continuation.usage import estimate, total
from worker.upstream.chunks import Chunk, decode_payload

IDENTITY = {"id": "chatcmpl-1", "created": 7, "model": "sim"}
TEXT = "The quiet river greets the sea"


def received(*payloads: dict[str, Any]) -> list[Chunk]:
    chunks = [decode_payload(json.dumps(each).encode()) for each in payloads]
    return [each for each in chunks if isinstance(each, Chunk)]


def piece(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "other", "created": 9, "model": "other", "object": "chat.completion.chunk", "choices": [choice]}


def continuation(identity: dict[str, Any] = IDENTITY) -> Continuation:
    return Continuation(identity, Overlap(TEXT), estimate(3, 5), 8, 5)


def deltas(chunks: list[Chunk]) -> list[dict[str, Any]]:
    return [json.loads(each.data)["choices"][0]["delta"] for each in chunks]


def test_chunks_get_the_identity_of_the_completion_and_lose_the_role() -> None:
    [text, end] = continuation().rewrite(
        received(piece(role="assistant", content=""), piece(role="assistant", content=" today"), piece("stop"))
    )
    assert json.loads(text.data) == {**piece(content=" today"), **IDENTITY}
    assert json.loads(end.data) == {**piece("stop"), **IDENTITY}
    assert (text.tokens, end.tokens, end.finished) == (1, 0, (0,))


def test_chunks_without_identity_stay_without() -> None:
    assert identity_of({"id": "", "created": 0, "model": ""}) == {}
    [text] = continuation({}).rewrite(received(piece(content="today")))
    assert json.loads(text.data).keys() == {"object", "choices"}


def test_a_repetition_is_removed_across_chunks() -> None:
    made = continuation()
    assert made.rewrite(received(piece(content="river "), piece(content="greets the s"))) == []
    chunks = made.rewrite(received(piece(content="ea at"), piece(content=" dawn")))
    assert deltas(chunks) == [{"content": " at"}, {"content": " dawn"}]


def test_held_text_precedes_what_is_no_text() -> None:
    call = {"index": 0, "id": "call_1", "function": {"name": "look", "arguments": ""}}
    chunks = continuation().rewrite(received(piece(content="river"), piece(tool_calls=[call])))
    assert deltas(chunks) == [{"content": "river"}, {"tool_calls": [call]}]
    chunks = continuation().rewrite(received(piece(content="river"), piece("stop")))
    assert deltas(chunks) == [{"content": "river"}, {}]
    made = continuation()
    assert made.rewrite(received(piece(content="river"))) == []
    assert deltas(made.end()) == [{"content": "river"}]
    assert made.end() == []


def test_chunks_before_the_text_do_not_end_the_search_for_a_repetition() -> None:
    """vLLM can report a usage in each chunk, and Azure has filter results in each choice."""
    first = piece(role="assistant", content="")
    first["choices"][0]["content_filter_results"] = {"hate": {"filtered": False}}
    made = continuation()
    [kept] = made.rewrite(received({**first, "usage": {"prompt_tokens": 8, "completion_tokens": 0}}))
    assert json.loads(kept.data)["usage"]["prompt_tokens"] == 11
    assert deltas(made.rewrite(received(piece(content="river greets the sea at")))) == [{"content": " at"}]


def test_a_last_chunk_with_text_keeps_its_finish_reason() -> None:
    [chunk] = continuation().rewrite(received(piece("stop", content="river greets the sea")))
    assert json.loads(chunk.data) == {**piece("stop", content=""), **IDENTITY}
    assert chunk.tokens == 0


def test_new_thoughts_are_not_passed_on() -> None:
    chunks = continuation().rewrite(received(piece(reasoning_content="Hm."), piece(content="!", reasoning="Hm.")))
    assert deltas(chunks) == [{"content": "!"}]


def test_the_usage_is_that_of_all_calls() -> None:
    made = continuation()
    reported = {"prompt_tokens": 8, "completion_tokens": 2, "total_tokens": 10, "details": {"cached": 1}}
    [chunk] = made.rewrite(received({**piece(), "choices": [], "usage": reported}))
    assert chunk.type == USAGE
    assert json.loads(chunk.data) == {
        **IDENTITY,
        "object": "chat.completion.chunk",
        "choices": [],
        "usage": {
            "prompt_tokens": 11,
            "completion_tokens": 7,
            "total_tokens": 18,
            "estimated": True,
            "details": {"cached": 1},
        },
    }
    assert made.reported


def test_sums_of_usages() -> None:
    one = {"prompt_tokens": 1, "details": {"cached": 2, "audio": None}, "tier": "a"}
    other = {"prompt_tokens": 2, "details": {"cached": 3, "audio": 4}, "tier": "b", "cost": 0.5}
    assert total(one, other) == {
        "prompt_tokens": 3, "details": {"cached": 5, "audio": 4}, "tier": "b", "cost": 0.5,
    }  # fmt: skip
    assert total(estimate(1, 2), {"prompt_tokens": 1})["estimated"] is True
