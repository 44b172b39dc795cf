"""The queue's scripts on a real server, with a clock that the test sets, called through the typed functions."""

from __future__ import annotations

import hashlib
from collections.abc import Coroutine, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from broker.queue import commands
from broker.redis.client import Redis, Script
from tests.model.storage import Storage

CLOCK = "test:clock"
SCRIPTS = (
    commands.OFFER,
    commands.PULL,
    commands.WITHDRAW,
    commands.BEGUN,
    commands.DONE,
    commands.HOLD,
    commands.POSITION,
    commands.TAKE,
)
_TIME = "local t = redis.call('TIME')\n  return t[1] * 1000 + math.floor(t[2] / 1000)"
_FAKE = f"return tonumber(redis.call('GET', '{CLOCK}'))"


@dataclass(frozen=True)
class Mutant:
    """A change of the scripts that removes a guard, and the fault that follows."""

    name: str
    changes: Sequence[tuple[str, str]]
    """Texts and their replacements. Each text must be in one of the scripts."""
    fault: str


@contextmanager
def replaced(*changes: tuple[str, str]) -> Generator[None]:
    """Run the scripts with replacements in their texts inside the block."""
    originals = [(script, script.source, script.sha) for script in SCRIPTS]
    try:
        for text, replacement in changes:
            assert any(text in script.source for script in SCRIPTS), f"not in the scripts: {text}"
            for script in SCRIPTS:
                script.source = script.source.replace(text, replacement)
        for script in SCRIPTS:
            script.sha = hashlib.sha1(script.source.encode(), usedforsecurity=False).hexdigest()
        yield
    finally:
        for script, source, sha in originals:
            script.source, script.sha = source, sha


def with_own_clock() -> Any:
    """Run the scripts with the clock of the test inside the block."""
    return replaced((_TIME, _FAKE))


class Direct:
    """The part of a Redis client that the typed functions use, without asyncio."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._loaded: set[str] = set()

    async def run(self, script: Script, names: Sequence[str], arguments: Sequence[Any]) -> Any:
        if script.sha not in self._loaded:
            self.storage.call("SCRIPT", "LOAD", script.source)
            self._loaded.add(script.sha)
        return self.storage.call("EVALSHA", script.sha, len(names), *names, *arguments)

    async def run_many(self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Any]]]) -> list[Any]:
        return [await self.run(script, names, arguments) for names, arguments in calls]

    async def execute(self, *command: Any) -> Any:
        return self.storage.call(*command)

    async def pipeline(self, batch: Sequence[tuple[Any, ...]]) -> Any:
        return self.storage.pipeline(batch)

    @property
    def redis(self) -> Redis:
        return cast("Redis", self)


def now(work: Coroutine[Any, Any, Any]) -> Any:
    """Return the result of a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")
