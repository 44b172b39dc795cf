"""The log under random schedules, on each engine."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import LogMachine
from tests.model.world import World

EXAMPLES = int(os.environ.get("TOKENCAST_EXAMPLES", "0"))


def test_random_schedules_keep_every_invariant(world: World) -> None:
    class Machine(LogMachine):
        pass

    Machine.world = world
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES or 60,
            stateful_step_count=50,
            derandomize=not EXAMPLES,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
