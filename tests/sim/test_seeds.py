"""Fifty seeds of message loss, cuts, kills and power losses: nothing promised is ever broken."""

from __future__ import annotations

import pytest
from sim.checks import DAMAGE_SAID
from sim.run import run_seed

SEEDS = range(1, 51)
CHUNK = 5
"""Seeds in one test: a failing chunk says which seeds failed and how to rerun each."""

SHOWN = (11, 5, 6, 7, 8, 2, 1)
"""Together they have all EVENTS; as many are run as it takes."""
FAULTS_MIN = 8
EVENTS = (
    *("killed", "lost RaftMessage", "isolated", "restored", "refused", "worker"),
    *("loses power", "flipped", DAMAGE_SAID, "moves to", ": cloned_identity"),
    *("faults blackout", "faults kill_between_writes", "faults slow_disks", "one way"),
    *("removed", "leaves", "replaced"),
)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", SEEDS[::CHUNK])
def test_a_cluster_survives_and_converges(first: int) -> None:
    failed = [result for seed in range(first, first + CHUNK) if (result := run_seed(seed)).problems]
    assert not failed, "\n".join(result.message() for result in failed)


@pytest.mark.slow
def test_a_run_exercises_what_it_claims_to() -> None:
    """A simulation in which nothing happens proves nothing."""
    missing = list(EVENTS)
    for seed in SHOWN:
        result = run_seed(seed)
        assert not result.problems, result.message()
        seen = "\n".join(result.lines)
        missing = [event for event in missing if event not in seen]
        assert result.stats["acknowledged"] > 100
        assert result.stats["answered"] > 20
        assert result.stats["faults"] >= FAULTS_MIN
        if not missing:
            return
    pytest.fail(f"seeds {SHOWN} have no {missing}")
