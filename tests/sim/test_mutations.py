"""The same seeds fail when the product is broken on purpose: the checkers see.

What each mutation opens, and what the run must say about it, is in sim.mutations.
"""

from __future__ import annotations

import pytest
from sim.mutations import MUTATIONS
from sim.run import run_seed

SEEDS = (1, 2, 3)
SIGNS = {
    "no_claim_check": ("bytes claimed", "bytes used of"),
    "open_d1": ("where another had", "was acknowledged and is in no history", "another state"),
}
"""At least one of these words must be in the problems: failing for another reason is no proof."""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutation", sorted(SIGNS))
def test_a_broken_product_is_noticed(mutation: str) -> None:
    noticed = []
    for seed in SEEDS:
        problems = "\n".join(run_seed(seed, mutation=mutation).problems)
        if any(sign in problems for sign in SIGNS[mutation]):
            noticed.append(seed)
    assert noticed, f"{mutation} went unnoticed in seeds {SEEDS}"


def test_every_mutation_is_shown_to_be_noticed() -> None:
    assert sorted(name for name in MUTATIONS if name) == sorted(SIGNS)
