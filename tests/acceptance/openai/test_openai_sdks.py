"""`/v1/chat/completions` with the unmodified OpenAI SDKs: the oldest and the newest openai-python, with both of its
clients, and openai-node. Gateway, worker and upstream are real processes. The results must be equal to those of an SDK
that calls the upstream directly."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from importlib import metadata
from typing import Any

import pytest

from tests.acceptance.openai.sdk import ALL_FORMS, NODE, NODE_SDK, Json, Result, Sdk, sdk_named
from tests.support import Gateway, gather, texts
from worker.simulator.directives import seed_of
from worker.simulator.text import pieces, tool_calls

PROMPT = "Explain the GIL in CPython."
SEED = seed_of([{"role": "user", "content": PROMPT}])


@pytest.fixture(scope="module", params=ALL_FORMS)
async def sdk(request: pytest.FixtureRequest) -> AsyncGenerator[Sdk, None]:
    async with sdk_named(request.param) as started:
        yield started


@pytest.fixture(scope="module", params=["newest", "newest async", NODE_SDK])
async def accumulating(request: pytest.FixtureRequest) -> AsyncGenerator[Sdk, None]:
    """An SDK with a helper that accumulates a stream."""
    async with sdk_named(request.param) as started:
        yield started


def sim_request(directive: str = "", model: str = "sim", **more: Any) -> Json:
    """The arguments of a call. Parameters that not all SDKs know are in the extra body."""
    content = f"{PROMPT} [[sim speed=0 {directive}]]"
    return {"model": model, "messages": [{"role": "user", "content": content}], "extra_body": more}


def expected_text(length: int, seed: int = SEED, **how: Any) -> str:
    return "".join(pieces(seed, length, **how))


async def test_the_sdks_have_the_intended_versions(sdk: Sdk) -> None:
    """The first one with today's interface, the one that this project depends on, and the one in Node's lock file."""
    node = json.loads((NODE / "package.json").read_text())["dependencies"]["openai"]
    meant = {"oldest": "1.0.0", "newest": metadata.version("openai"), "node": node}
    assert sdk.version == meant[sdk.name.partition(" ")[0]]


@pytest.mark.parametrize("call", ["stream", "create"])
async def test_the_text_arrives_completely(running: Gateway, sdk: Sdk, call: str) -> None:
    """The complete text with its finish_reason, with and without streaming; the stored generation has the same text."""
    result = await sdk.call(running.url, call, **sim_request("length=200"))
    assert result.error is None
    assert result.text() == expected_text(200)
    assert result.finish_reasons == {0: "stop"}
    gid = result.completion["id"] if result.completion else result.generation
    stored = await running.get(gid)
    assert (stored["status"], stored["text"]) == ("completed", expected_text(200))


ODDITIES = {
    "plain": "length=20",
    "reasoning_content": "reasoning=8 length=8",
    "reasoning": "reasoning=8 reasoning_field=reasoning length=8",
    "tool calls": "tools=3",
    "text and tool calls": "tools=2 length=5",
    "tool calls without index": "fault=tool-no-index",
    "refusal": "refusal=8",
    "cut by length": "length=8 finish=length",
    "content filter": "length=8 finish=content_filter",
    "azure": "shape=azure length=8",
    "unknown fields": "shape=extra length=8",
    "gabforge": "shape=gabforge length=8",
    "gabforge with tools": "shape=gabforge tools=2",
    "null content": "length=20 fault=null-content",
    "split surrogates": "split_surrogate=1 length=80",
}
FRAMINGS = [
    "newlines=crlf",
    "split=1",
    *(f"fault={f}" for f in ("raw-newline", "event-field", "retry-field", "no-done")),
]


def comparable_chunks(result: Result) -> list[Json]:
    """The chunks without the fields that differ between calls. The worker requests usage, which adds a null to each
    chunk."""
    assert result.error is None
    varying = ("id", "created", "usage")
    return [{key: value for key, value in chunk.items() if key not in varying} for chunk in result.chunks]


def with_deltas(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**chunk, "choices": [{"delta": {}, **choice} for choice in chunk["choices"]]} for chunk in chunks]


@pytest.mark.parametrize("directive", ODDITIES.values(), ids=ODDITIES)
async def test_a_stream_is_equal_to_that_of_the_upstream(running: Gateway, sim: str, sdk: Sdk, directive: str) -> None:
    """Every chunk and field is equal, for all known variants of upstreams; here for three choices. Only a missing
    `delta` is added, without which some SDKs fail."""
    arguments = sim_request(directive, n=3)
    ours, theirs = await gather(sdk.call(running.url, "stream", **arguments), sdk.call(sim, "stream", **arguments))
    assert comparable_chunks(ours) == with_deltas(comparable_chunks(theirs))
    assert len({chunk.get("id") for chunk in ours.chunks}) == len({chunk.get("id") for chunk in theirs.chunks})


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_unusual_framing_is_normalised(running: Gateway, sim: str, sdk: Sdk, framing: str) -> None:
    """Some of these break an SDK that calls the upstream directly; through the gateway each SDK reads the chunks."""
    ours, plain = await gather(
        sdk.call(running.url, "stream", **sim_request(f"length=8 {framing}")),
        sdk.call(sim, "stream", **sim_request("length=8")),
    )
    assert comparable_chunks(ours) == comparable_chunks(plain)


WHOLE = {name: directive for name, directive in ODDITIES.items() if name != "tool calls without index"}


@pytest.mark.parametrize("directive", WHOLE.values(), ids=WHOLE)
async def test_a_completion_is_equal_to_that_of_the_upstream(
    running: Gateway, sim: str, sdk: Sdk, directive: str
) -> None:
    """The gateway merges the upstream's stream into the same response that the upstream gives without streaming."""
    arguments = sim_request(directive, n=3)
    ours, theirs = await gather(sdk.call(running.url, "create", **arguments), sdk.call(sim, "create", **arguments))
    assert (ours.error, theirs.error) == (None, None)
    assert ours.completion
    assert theirs.completion
    assert ours.completion["object"] == "chat.completion"
    assert (await running.get(ours.completion["id"]))["status"] == "completed"
    assert len(ours.completion["choices"]) == 3
    for mine, other in zip(ours.completion["choices"], theirs.completion["choices"], strict=True):
        assert {name: mine["message"].get(name) or None for name in other["message"]} == other["message"]
        assert (mine["index"], mine["finish_reason"]) == (other["index"], other["finish_reason"])


async def test_special_characters_arrive_unchanged(running: Gateway, sdk: Sdk) -> None:
    """With U+2028, U+2029 and U+0085, which old clients treat as line ends."""
    for directive in ("unicode=1 length=80", "split_surrogate=1 length=80"):
        for call in ("stream", "create"):
            result = await sdk.call(running.url, call, **sim_request(directive))
            assert result.error is None
            assert result.text() == expected_text(80, unicode=True)


async def test_unknown_fields_are_passed_on(running: Gateway, sdk: Sdk) -> None:
    """On the chunk, the choice and the delta; without streaming on the choice and the message."""
    streamed, whole = await gather(
        *(sdk.call(running.url, call, **sim_request("shape=extra length=8")) for call in ("stream", "create"))
    )
    chunk = streamed.chunks[3]
    assert (chunk["provider"], chunk["timings"]) == ("simulated", {"predicted_ms": 1.5})
    assert chunk["choices"][0]["confidence"] == 0.5
    assert chunk["choices"][0]["delta"]["trace"] == {"hop": 1}
    assert whole.completion["choices"][0]["confidence"] == 0.5
    assert whole.completion["choices"][0]["native_finish_reason"] == "stop"
    assert whole.completion["choices"][0]["message"]["trace"] == {"hop": 1}


async def test_tool_calls_and_reasoning_arrive_unchanged(running: Gateway, sdk: Sdk) -> None:
    result = await sdk.call(running.url, "create", **sim_request("tools=2 reasoning=6"))
    message = result.completion["choices"][0]["message"]
    assert message["reasoning_content"] == expected_text(6, voice="reasoning")
    assert result.finish_reasons == {0: "tool_calls"}
    assert [
        (call["id"], call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]
    ] == [(call.id, call.name, call.arguments) for call in tool_calls(SEED, 2)]


def contents(result: Result) -> list[str]:
    return [choice["message"]["content"] for choice in result.completion["choices"]]


REFUSED = {"cut by length", "content filter"}
"""Cases in which an accumulating stream may raise an error of its own, for any server."""
REPAIRED = {"azure"}
"""Cases in which only the upstream's own stream makes an accumulating stream fail: choices without a `delta`."""


@pytest.mark.parametrize("name", [name for name in WHOLE if "gabforge" not in name])
async def test_the_accumulating_stream_works(running: Gateway, sim: str, accumulating: Sdk, name: str) -> None:
    """Text, reasoning, refusals and tool calls of three choices, with usage: the same result as from the upstream."""
    arguments = sim_request(WHOLE[name], n=3, stream_options={"include_usage": True})
    ours, theirs = await gather(*(accumulating.call(url, "helper", **arguments) for url in (running.url, sim)))
    if theirs.error is not None:
        assert name in REFUSED | REPAIRED
        if name in REPAIRED:
            assert ours.error is None
            whole = await accumulating.call(sim, "create", **sim_request(WHOLE[name], n=3))
            assert contents(ours) == contents(whole)
            return
        assert (ours.error or {}).get("class") == theirs.error["class"]
        return
    assert ours.error is None
    varying = ("id", "created")
    mine, other = ({k: v for k, v in one.completion.items() if k not in varying} for one in (ours, theirs))
    assert mine == other
    assert len(ours.completion["choices"]) == 3


USAGE = {"prompt_tokens": 8, "completion_tokens": 12, "total_tokens": 20}


async def test_usage_is_sent_only_on_request(running: Gateway, sdk: Sdk) -> None:
    """In a stream it is the last chunk, without choices; a response without streaming always has it."""
    options = {"stream_options": {"include_usage": True}}
    silent, counted, whole = await gather(
        sdk.call(running.url, "stream", **sim_request("length=12")),
        sdk.call(running.url, "stream", **sim_request("length=12", **options)),
        sdk.call(running.url, "create", **sim_request("length=12")),
    )
    assert silent.usage is None
    assert all(chunk["choices"] for chunk in silent.chunks)
    assert [chunk for chunk in counted.chunks if chunk.get("usage") or not chunk["choices"]] == counted.chunks[-1:]
    assert USAGE.items() <= counted.chunks[-1]["usage"].items()
    assert counted.chunks[:-1] != []
    assert USAGE.items() <= whole.usage.items()


@pytest.mark.parametrize("directive", ["usage=never", "usage=reject", "shape=gabforge"])
async def test_usage_is_estimated_if_the_upstream_sends_none(running: Gateway, sdk: Sdk, directive: str) -> None:
    """Each chunk counts as a token, and the usage is marked as estimated."""
    streamed, whole = await gather(
        sdk.call(
            running.url, "stream", **sim_request(f"length=12 {directive}", stream_options={"include_usage": True})
        ),
        sdk.call(running.url, "create", **sim_request(f"length=12 {directive}")),
    )
    for result in (streamed, whole):
        assert result.error is None
        assert result.text() == expected_text(12)
        assert result.usage["completion_tokens"] == 12
        assert result.usage["estimated"] is True
    assert streamed.chunks[-1]["choices"] == []
    assert sum(bool(chunk.get("usage")) for chunk in streamed.chunks) == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_a_header_names_the_generation(running: Gateway, sdk: Sdk, stream: bool) -> None:
    """The SDKs return it with the raw response."""
    result = await sdk.call(running.url, "raw", stream=stream, **sim_request("length=12"))
    assert result.text() == expected_text(12)
    assert (await running.get(result.generation))["text"] == expected_text(12)
    assert result.headers["x-request-id"].startswith("req_")


async def test_a_completion_can_be_followed_natively_meanwhile(running: Gateway, sdk: Sdk) -> None:
    call = sdk.start(running.url, "raw", stream=True, **sim_request("length=60 speed=300"))
    await call.chunk()
    assert (await running.get(call.result.generation))["status"] == "in_progress"
    frames = await running.events(call.result.generation)
    assert texts(frames) == (await call.end()).text() == expected_text(60)


async def test_unknown_parameters_reach_the_upstream(running: Gateway, sim: str, sdk: Sdk) -> None:
    """Except for the gateway's own parameters, which upstreams refuse."""
    label = f"parameters-{sdk.name}".replace(" ", "-")
    ours = {"metadata": {"order": "17"}, "on_upstream_error": "restart", "ttl_seconds": 60}
    arguments = sim_request(f"label={label} length=1", top_k=3, **ours)
    result = await sdk.call(running.url, "create", temperature=0.5, **arguments)
    assert result.text() == expected_text(1)
    [call] = (await running.http.get(f"{sim.removesuffix('/v1')}/sim/calls?label={label}")).json()
    assert set(call["parameters"]) == {"messages", "model", "stream", "stream_options", "temperature", "top_k"}
    assert (await running.get(result.completion["id"]))["metadata"] == {"order": "17"}


async def test_models_are_listed(running: Gateway, sdk: Sdk) -> None:
    """Including the models that are configured by name."""
    result = await sdk.call(running.url, "models")
    assert result.error is None
    assert {"gabforge-coder", "sim", "m"} <= {model["id"] for model in result.models}
    assert {(model["object"], model["owned_by"]) for model in result.models} == {("model", "default")}


async def test_a_stored_completion_is_retrieved(running: Gateway, accumulating: Sdk) -> None:
    """With the id of the completion. (The oldest SDK has no such call.)"""
    created = await accumulating.call(running.url, "create", **sim_request("tools=2 length=5"))
    retrieved = await accumulating.call(running.url, "retrieve", completion_id=created.completion["id"])
    assert retrieved.error is None
    assert retrieved.completion == created.completion
