"""Entries of TOKENCAST_UPSTREAMS as calls meet them: which one is called, under which model, with which timeouts."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from typing import Any

import httpx2
import pytest

from broker.settings.loading import load
from broker.settings.settings import Settings
from tests.support import upstream_calls, upstream_sim
from worker.upstream.errors import UpstreamError
from worker.upstream.stream import Upstreams


@pytest.fixture(scope="module")
async def sims() -> AsyncGenerator[tuple[str, str], None]:
    async with upstream_sim() as one, upstream_sim() as other:
        yield one, other


def entries(monkeypatch: pytest.MonkeyPatch, *given: dict[str, Any]) -> Settings:
    monkeypatch.setenv("TOKENCAST_UPSTREAMS", json.dumps([{"api_key_env": None, **entry} for entry in given]))
    return load(Settings)


async def call(upstreams: Upstreams, model: str, directive: str, resource: str | None = None) -> None:
    content = f"Say something. [[sim length=2 speed=0 {directive}]]"
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": content}]}
    async with upstreams.open(model, body, resource) as stream:
        async for _ in stream:
            pass
    assert body["model"] == model


async def called(url: str, label: str) -> list[str]:
    return [each["model"] for each in await upstream_calls(url, label)]


async def test_the_resource_chooses_the_upstream_and_the_entry_its_model(
    monkeypatch: pytest.MonkeyPatch, sims: tuple[str, str]
) -> None:
    settings = entries(
        monkeypatch,
        {"name": "one", "base_url": sims[0], "models": {"coder": "sim-fast", "*": "sim"}},
        {"name": "other", "base_url": sims[1], "models": {"coder": "gabforge-coder"}, "limits": "model"},
    )
    async with Upstreams(settings) as upstreams:
        await call(upstreams, "coder", "label=by-default")
        await call(upstreams, "coder", "label=by-name", "one")
        await call(upstreams, "coder", "label=by-name", "other/coder")
        await call(upstreams, "anything", "label=by-name", "one")
        with pytest.raises(UpstreamError) as caught:
            await call(upstreams, "anything", "label=by-name", "other/coder")
    assert caught.value.code == "model_not_found"
    assert await called(sims[0], "by-default") == ["sim-fast"]
    assert await called(sims[0], "by-name") == ["sim-fast", "sim"]
    assert await called(sims[1], "by-default") == []
    assert await called(sims[1], "by-name") == ["gabforge-coder"]


@pytest.mark.parametrize(
    ("timeout", "directive", "says"),
    [
        ("first_token_timeout", "fault=silent", "The upstream sent no chunk within 0.2 s."),
        ("idle_timeout", "fault=stall at=1", "The upstream sent nothing for 0.2 s."),
    ],
)
async def test_an_entry_has_timeouts_of_its_own(
    monkeypatch: pytest.MonkeyPatch, sims: tuple[str, str], timeout: str, directive: str, says: str
) -> None:
    settings = entries(monkeypatch, {"name": "one", "base_url": sims[0], timeout: 0.2})
    began = time.monotonic()
    async with Upstreams(settings) as upstreams:
        with pytest.raises(UpstreamError) as caught:
            await call(upstreams, "sim", directive)
    assert (caught.value.code, caught.value.message) == ("upstream_timeout", says)
    assert time.monotonic() - began < settings.idle_timeout


async def test_rate_limits_are_read_from_answers_and_refusals(
    monkeypatch: pytest.MonkeyPatch, sims: tuple[str, str]
) -> None:
    settings = entries(monkeypatch, {"name": "one", "base_url": sims[1]})
    body = {"model": "sim", "messages": [{"role": "user", "content": "Hello. [[sim length=1 speed=0]]"}]}
    async with httpx2.AsyncClient() as http, Upstreams(settings) as upstreams:
        control = sims[1].removesuffix("/v1") + "/sim/quota"
        await http.put(control, json={"requests_per_minute": 1, "minute": 3600})
        async with upstreams.open("sim", body) as stream:
            assert stream.rate_limits is not None
            assert stream.rate_limits.requests[:2] == (1, 0)
        with pytest.raises(UpstreamError) as caught:
            async with upstreams.open("sim", body):
                pass
        await http.put(control, json={})
        async with upstreams.open("sim", body) as stream:
            assert stream.rate_limits is None
    assert caught.value.outcome == "busy"
    assert caught.value.retry_after is not None
    assert 0 < caught.value.retry_after <= 3600
    assert caught.value.rate_limits is not None
