"""Fifty storms hold; with a guard off, the same storms find the defect (500: see soak_results)."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from raft.soak import FAULTS, OFF, Storm, found_by, storm

from aivailable.raft.guards import Guards

SEEDS = 50
GROUP = 10
FAULTS_EACH = 6


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Poison is logged with a traceback on every node."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(before)


@pytest.mark.parametrize("first", range(0, SEEDS, GROUP))
def test_storms_break_no_promise(first: int) -> None:
    storms: list[Storm] = []
    for seed in range(first, first + GROUP):
        try:
            storms.append(storm(seed, faults=FAULTS_EACH))
        except AssertionError as error:
            pytest.fail(f"{error}\nrerun: python -m raft.soak --first {seed} --seeds 1")
    assert sum(len(one.acknowledged) for one in storms) > 100 * GROUP
    assert sum(one.changes for one in storms) > 3 * GROUP
    assert sum(one.reads for one in storms) > 5 * GROUP
    assert sum(one.damaged for one in storms) > 0


@pytest.mark.parametrize("defect", OFF)
def test_the_same_storms_find_an_open_defect(defect: str) -> None:
    guards = Guards(**OFF[defect])
    for seed in range(SEEDS):
        problem = found_by(seed, faults=FAULTS_EACH, guards=guards)
        if problem is not None:
            break
    else:
        pytest.fail(f"{SEEDS} storms without {defect}, and nothing was found")
    # D10 stops a node; the others break a promise.
    assert problem.startswith("AssertionError" if defect == "D10" else "Violation"), problem


def test_the_same_seed_is_the_same_storm() -> None:
    one, two = storm(3, faults=3), storm(3, faults=3)
    assert one.history.applied == two.history.applied
    assert list(one.acknowledged) == list(two.acknowledged)
    assert len(FAULTS) == len(dict.fromkeys(FAULTS))
