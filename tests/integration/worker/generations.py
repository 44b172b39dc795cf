"""Generations on the simulated upstream, run by a worker process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import httpx2

from broker import Broker, Event, Generation
from worker.simulator import text


@dataclass(frozen=True)
class Run:
    """A generation that has ended, and its events."""

    generation: Generation
    events: list[Event]

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]

    @property
    def error(self) -> dict[str, Any]:
        assert self.events[-1].name == "failed", self.names
        error = json.loads(self.events[-1].data)["error"]
        assert error == self.generation.error
        return error

    @property
    def chunks(self) -> list[dict[str, Any]]:
        return [json.loads(event.data) for event in self.events if event.name == "chunk"]


def request_with(directive: str, **more: Any) -> dict[str, Any]:
    content = f"Say something. [[sim seed=7 length=20 speed=0 {directive}]]"
    return {"model": "sim", **more, "messages": [{"role": "user", "content": content}]}


async def run(broker: Broker, directive: str = "", **more: Any) -> Run:
    created = await broker.enqueue(request_with(directive, **more))
    events = [event async for event in broker.follow(created.id)]
    return Run(await broker.get(created.id), events)


async def calls(sim: str, label: str) -> list[dict[str, Any]]:
    async with httpx2.AsyncClient() as client:
        return (await client.get(sim.removesuffix("/v1") + "/sim/calls", params={"label": label})).json()


def expected_text(length: int = 20, seed: int = 7, first: int | None = None) -> str:
    """The model's text, or its first pieces."""
    return "".join(text.pieces(seed, length)[:first])
