"""A hostile member ends no election, no planning and no membership; the checks that see to it do.

The long run is sim.adversary; its results are in soak_results.txt.
"""

from __future__ import annotations

import pytest
from sim.adversary import run_hostile_seed
from sim.mutations import HOSTILE

SEEDS = range(1, 5)
SIGNS = {
    "anybody_speaks": ("terms were driven to", "harmed for good"),
    "anybody_plans": ("harmed for good",),
    "anybody_takes_votes": ("harmed for good",),
}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_hostile_member_does_no_lasting_harm() -> None:
    results = [run_hostile_seed(seed) for seed in SEEDS]
    failed = [result for result in results if result.problems]
    assert not failed, "\n".join(result.message() for result in failed)
    assert min(result.stats["said"] for result in results) > 1000


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutation", sorted(SIGNS))
def test_each_check_is_missed_when_it_is_gone(mutation: str) -> None:
    problems = "\n".join(run_hostile_seed(1, mutation=mutation).problems)
    assert any(sign in problems for sign in SIGNS[mutation]), problems


def test_every_mutation_is_shown() -> None:
    assert sorted(name for name in HOSTILE if name) == sorted(SIGNS)
