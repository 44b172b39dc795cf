"""The upstream's reply, parsed from bytes: any bytes lead to exactly one ending, and every stored chunk is readable."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.chunks import decode_chunk
from broker.completion.fold import Completion
from worker.simulator.replies import COUNTED, DONE, GOOD, MORNING, REPLIES, STOP, chunk, event
from worker.upstream.chunks import Chunk
from worker.upstream.reply import Reply

KEY = "sk-of-the-operator"
LONGEST = 4 << 20
STREAMS = {
    name: b"".join(part for part in reply.parts if isinstance(part, bytes))
    for name, reply in REPLIES.items()
    if name not in ("image", "usage-huge")  # too large for a thousand mutations
}
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.just("\ud83d"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def play(stream: bytes, reads: list[int], choices: int = 1, *, clean: bool = True) -> tuple[Reply, list[Chunk]]:
    """Feed a stream to a reply in reads of these sizes, repeated in turn."""
    reply, chunks, at, turn = Reply(choices, (KEY,), LONGEST), list[Chunk](), 0, 0
    while at < len(stream) and not reply.done and reply.error is None:
        size = reads[turn % len(reads)]
        chunks += reply.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
    if not reply.done and reply.error is None:
        chunks += reply.end()
    return reply, chunks


def check(reply: Reply, chunks: list[Chunk]) -> None:
    """Check that the reply has an ending and that every stored chunk can be decoded."""
    assert reply.done != (reply.error is not None)
    if reply.error is not None:
        assert reply.error.message
        assert json.loads(msgspec.json.encode(reply.error.to_json()))["code"]
    completion = Completion()
    for one in chunks:
        assert not set(one.data) & {0x0A, 0x0D}
        stored = json.loads(one.data.decode(), parse_constant=pytest.fail)
        assert isinstance(stored["choices"], list)
        completion.add(decode_chunk(one.data))
    assert json.loads(msgspec.json.encode(completion.choices)) is not None
    assert msgspec.json.encode(completion.usage)


def mutated(value: Any, chance: random.Random, spare: Any) -> Any:
    """The value with one part replaced, emptied, doubled, wrapped or removed."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        name = chance.choice(list(value))
        if chance.random() < 0.1:
            return {key: item for key, item in value.items() if key != name}
        return {**value, name: mutated(value[name], chance, spare)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        if chance.random() < 0.2:
            return [*value, value[at]]
        return [*value[:at], mutated(value[at], chance, spare), *value[at + 1 :]]
    deep: Any = value
    for _ in range(chance.choice((1, 3, 200))):
        deep = [deep]
    return chance.choice(
        (None, "", 0, -1, True, [], {}, [value], {"a": value}, str(value), 10**400, 1e308, deep, spare)
    )


@given(
    st.sampled_from(sorted(STREAMS)),
    st.randoms(use_true_random=False),
    JSON,
    st.lists(st.integers(1, 300), min_size=1, max_size=4),
    st.integers(1, 3),
)
def test_a_mutated_reply_ends_and_is_readable(
    name: str, chance: random.Random, spare: Any, reads: list[int], choices: int
) -> None:
    events = [one + b"\n\n" for one in STREAMS[name].split(b"\n\n") if one]
    for _ in range(chance.randrange(1, 4)):
        if not events:
            break
        at = chance.randrange(len(events))
        match chance.randrange(6):
            case 0:
                events.insert(chance.randrange(len(events)), events[at])
            case 1:
                del events[at]
            case 2:
                chance.shuffle(events)
            case 3:
                cut = chance.randrange(len(events[at]))
                events[at] = events[at][:cut] + (chance.randbytes(2) if chance.random() < 0.5 else b"")
            case _:
                head, mark, data = events[at].partition(b"data: ")
                try:
                    value = mutated(json.loads(data), chance, spare)
                    events[at] = head + mark + json.dumps(value).encode() + b"\n\n"
                except ValueError:
                    continue
    check(*play(b"".join(events), reads, choices))


@given(st.binary(max_size=200), st.sampled_from([b"", b"data: ", GOOD, GOOD + STOP]))
def test_random_bytes_end_and_are_readable(noise: bytes, before: bytes) -> None:
    reply, chunks = play(before + noise, [17])
    check(reply, chunks)
    if STOP in before:
        assert reply.done


@pytest.mark.parametrize("name", STREAMS)
def test_a_reply_does_not_depend_on_read_boundaries(name: str) -> None:
    whole, once = play(STREAMS[name], [1 << 20])
    bytewise, pieces = play(STREAMS[name], [1])
    check(whole, once)
    assert [one.data for one in once] == [one.data for one in pieces]
    assert (whole.error and whole.error.to_json()) == (bytewise.error and bytewise.error.to_json())


@pytest.mark.parametrize(
    "after",
    [b"", DONE, b"data: {", event("{"), event({"error": {"message": "too late"}}), event({"code": 500, "message": "x"}),
     event([1, 2]), chunk("error"), chunk("abort"), chunk(""), event({"usage": {}}), b"\xff\xfe\n\n", b"x" * 100],
)  # fmt: skip
def test_a_finished_reply_stays_finished(after: bytes) -> None:
    reply, chunks = play(GOOD + MORNING + STOP + after, [1 << 20])
    check(reply, chunks)
    assert reply.done


def test_finish_and_usage_are_recognized() -> None:
    reply = Reply(1, (KEY,), LONGEST)
    reply.feed(GOOD + STOP)
    assert (reply.finished, reply.has_usage, reply.done) == (True, False, False)
    reply.feed(COUNTED)
    assert reply.has_usage


def test_every_requested_choice_must_finish() -> None:
    stream = chunk(content="a") + chunk(index=1, content="b") + STOP
    assert play(stream, [99], 2)[0].error
    assert play(stream + chunk("stop", 1), [99], 2)[0].done


def test_a_line_above_the_output_limit_is_output_too_large() -> None:
    reply = Reply(1, (KEY,), 1000)
    reply.feed(GOOD + b"data: " + b"x" * 1000)
    assert reply.error is not None
    assert reply.error.code == "output_too_large"
    assert not reply.error.restartable


def test_no_error_of_a_reply_contains_the_api_key() -> None:
    for stream in (event({"error": {"message": f"bad key {KEY}"}}), event(f'"{KEY}"', "error"), f'{{"error":"{KEY}"}}'):
        reply, _ = play(stream if isinstance(stream, bytes) else stream.encode(), [99])
        assert reply.error is not None
        assert KEY not in json.dumps(reply.error.to_json())
