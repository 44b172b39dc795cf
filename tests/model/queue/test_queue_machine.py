"""The queue's scripts under random schedules."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.oracle import Violation
from tests.model.queue.machine import QueueMachine
from tests.model.queue.mutants import SCHEDULED
from tests.model.queue.scripts import Mutant, replaced
from tests.model.queue.world import QueueWorld

EXAMPLES = int(os.environ.get("TOKENCAST_EXAMPLES", "0"))
MOST = 300
"""Maximum for a mutant."""


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
            report_multiple_bugs=False,
            phases=phases or tuple(Phase),
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_random_schedules_keep_every_invariant(world: QueueWorld) -> None:
    run_schedules(world, EXAMPLES or 40)


@pytest.mark.parametrize("world", ["valkey"], indirect=True)
@pytest.mark.parametrize("mutant", SCHEDULED, ids=[mutant.name for mutant in SCHEDULED])
def test_the_schedules_detect_a_removed_guard(world: QueueWorld, mutant: Mutant) -> None:
    with replaced(*mutant.changes), pytest.raises(Violation):
        run_schedules(world, MOST, Phase.generate)
