"""The same seeds fail when the product is broken on purpose: the checkers see.

What each mutation opens, and what the run must say about it, is in sim.mutations.
"""

from __future__ import annotations

import pytest
from sim.mutations import MUTATIONS
from sim.run import run_seed

FORKED = ("where another had", "was acknowledged and is in no history", "another state")
SIGNS = {
    "no_claim_check": ("bytes claimed", "bytes used of"),
    "no_checksum": FORKED,
    "open_d1": FORKED,
    "open_d5": FORKED,
}
"""At least one of these words must be in the problems: failing for another reason is no proof."""
SEEDS = {
    "no_claim_check": (1, 2, 3),
    "no_checksum": (20, 27),
    "open_d1": (1, 2, 3),
    "open_d5": (2,),
}
"""One of these must notice; the first that does is enough."""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutation", sorted(SIGNS))
def test_a_broken_product_is_noticed(mutation: str) -> None:
    for seed in SEEDS[mutation]:
        problems = "\n".join(run_seed(seed, mutation=mutation).problems)
        if any(sign in problems for sign in SIGNS[mutation]):
            return
    pytest.fail(f"{mutation} went unnoticed in seeds {SEEDS[mutation]}")


def test_every_mutation_is_shown_to_be_noticed() -> None:
    assert sorted(name for name in MUTATIONS if name) == sorted(SIGNS)
