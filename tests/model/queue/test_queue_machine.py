"""The queue's scripts under random schedules."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from broker.dev.embedded_redis import EmbeddedRedis
from tests.model.oracle import Violation
from tests.model.queue.machine import QueueMachine
from tests.model.queue.mutants import SCHEDULED
from tests.model.queue.scripts import Mutant, replaced, with_own_clock
from tests.model.queue.world import QueueWorld
from tests.model.storage import Storage
from tests.support import ENGINES

EXAMPLES = int(os.environ.get("TOKENCAST_EXAMPLES", "0"))
MOST = 2000
"""Maximum for a mutant."""


@pytest.fixture(scope="module", params=["valkey", pytest.param("redis", marks=pytest.mark.engine)])
def world(request: pytest.FixtureRequest) -> Iterator[QueueWorld]:
    """A queue on its own server, whose scripts use the clock of the test."""
    binary = ENGINES[request.param]
    if binary is None:
        pytest.skip(f"{request.param}-server is not installed")
    with asyncio.Runner() as runner, with_own_clock():
        server = EmbeddedRedis(binary=binary)
        runner.run(server.__aenter__())
        storage = Storage(server.port)
        try:
            yield QueueWorld(storage)
        finally:
            storage.close()
            runner.run(server.__aexit__(None, None, None))


def run_schedules(world: QueueWorld, examples: int, *phases: Phase) -> None:
    class Machine(QueueMachine):
        pass

    Machine.world = world
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=60,
            derandomize=not EXAMPLES,
            deadline=None,
            database=None,
            print_blob=True,
            phases=phases or tuple(Phase),
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_random_schedules_keep_every_invariant(world: QueueWorld) -> None:
    run_schedules(world, EXAMPLES or 60)


@pytest.mark.parametrize("world", ["valkey"], indirect=True)
@pytest.mark.parametrize("mutant", SCHEDULED, ids=[mutant.name for mutant in SCHEDULED])
def test_the_schedules_detect_a_removed_guard(world: QueueWorld, mutant: Mutant) -> None:
    with replaced(*mutant.changes), pytest.raises(Violation):
        run_schedules(world, MOST, Phase.generate)
