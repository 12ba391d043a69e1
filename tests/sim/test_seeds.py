"""Fifty seeds of message loss, cuts, kills and power losses: nothing promised is ever broken."""

from __future__ import annotations

import pytest
from sim.run import run_seed

SEEDS = range(1, 51)
CHUNK = 5
"""Seeds in one test: a failing chunk says which seeds failed and how to rerun each."""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", SEEDS[::CHUNK])
def test_a_cluster_survives_and_converges(first: int) -> None:
    failed = [result for seed in range(first, first + CHUNK) if (result := run_seed(seed)).problems]
    assert not failed, "\n".join(result.message() for result in failed)


def test_a_run_exercises_what_it_claims_to() -> None:
    """A simulation in which nothing happens proves nothing."""
    result = run_seed(3)
    assert not result.problems, result.message()
    seen = "\n".join(result.lines)
    for event in ("killed", "lost RaftMessage", "isolated", "restored", "refused", "worker"):
        assert event in seen, f"seed 3 has no {event!r}"
    assert result.stats["acknowledged"] > 100
    assert result.stats["answered"] > 20
    assert result.stats["faults"] > 10
