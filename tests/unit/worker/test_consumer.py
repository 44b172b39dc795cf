"""How long a worker waits for the bell."""

from __future__ import annotations

import pytest

from worker.consumer import BELL_BLOCK, SHORTEST_BLOCK, bell_block


@pytest.mark.parametrize("wait", [0.0, 0.0001, 0.0004, 0.5, 4.99, 60.0, None])
def test_the_bell_is_awaited_for_a_bounded_time(wait: float | None) -> None:
    """BLPOP blocks without end if its timeout is 0, and a pull that has nothing to wait for must not repeat at once."""
    for _ in range(20):
        block = bell_block(wait)
        assert float(f"{block:.3f}") >= SHORTEST_BLOCK
        assert min(wait or 0.0, BELL_BLOCK) <= block <= BELL_BLOCK
