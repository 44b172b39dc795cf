"""A short chaos run with every fault once; `make chaos MINUTES=20` is a long one."""

from __future__ import annotations

import pytest

from tests.chaos.__main__ import run
from tests.chaos.plan import KINDS, plan

SECONDS = 24.0


def test_a_plan_is_a_function_of_its_seed() -> None:
    assert plan(5, 60) == plan(5, 60)
    assert plan(5, 60) != plan(6, 60)


@pytest.mark.parametrize("seed", [1, 2])
def test_every_fault_is_in_a_short_plan(seed: int) -> None:
    assert {fault.kind for fault in plan(seed, SECONDS).faults} == set(KINDS)


@pytest.mark.timeout(400)
async def test_a_short_run_violates_no_invariant() -> None:
    verdict = await run(plan(17, SECONDS))
    assert not verdict.complaints, str(verdict)
