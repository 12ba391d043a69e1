"""Cards that others use too: never asked for more than there is, and filled again in the end.

The long run is sim.memory_soak; its results are in memory_results.txt.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest
from fixtures.virtual_time import elapse
from sim.loop import SimLoop
from sim.memory_cards import LATE_MAX_S, CardLedger
from sim.memory_run import run_memory_seed

from aivailable.core.state.records import Replica
from aivailable.core.state.state import State
from aivailable.peer.serving.agent import Agent

SEEDS = range(1, 7)
GIB = 1 << 30
CARD = "card0"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_is_loaded_into_what_is_not_free_and_all_that_fits_comes_back() -> None:
    results = [run_memory_seed(seed) for seed in SEEDS]
    failed = [result for result in results if result.problems]
    assert not failed, "\n".join(result.message() for result in failed)
    for what in ("faults", "launches", "others grew", "late", "deployments"):
        assert sum(result.stats[what] for result in results) >= len(SEEDS), what
    assert max(result.stats["fullest"] for result in results) > 0.95


def _no_check(self: Agent, state: State, record: Replica) -> None:
    """The agent believes the plan."""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_agent_that_does_not_look_before_it_loads_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Agent, "_check_live_bytes", _no_check)
    for seed in SEEDS:
        if any("bytes began with" in problem for problem in run_memory_seed(seed).problems):
            return
    pytest.fail(f"unnoticed in seeds {SEEDS}")


class _Card:
    """One 8 GiB card and what its ledger complains of."""

    def __init__(self) -> None:
        self.ledger = CardLedger("n1", {CARD: 8 * GIB}, random.Random(1))
        self.said: list[str] = []
        self.ledger.complain = self.said.append

    def load(self, worker: int, claim_bytes: int) -> None:
        self.ledger.launched(worker, {CARD: claim_bytes})

    def take(self, worker: int, used_bytes: int) -> bool:
        return self.ledger.occupy(worker, {CARD: used_bytes})


def play(story: Callable[[_Card], Awaitable[None]]) -> _Card:
    async def main() -> None:
        await story(card)

    card, loop = _Card(), SimLoop()
    try:
        loop.run(main(), limit_s=60.0)
    finally:
        loop.close()
    return card


def test_memory_comes_back_late() -> None:
    async def story(card: _Card) -> None:
        card.load(1, 5 * GIB)
        assert card.take(1, 5 * GIB)
        card.ledger.release(1)
        assert card.ledger.free(CARD) == 3 * GIB
        await elapse(LATE_MAX_S)
        assert card.ledger.free(CARD) == 8 * GIB

    assert play(story).said == []


def test_two_loads_that_fit_alone_only_are_a_breach() -> None:
    async def story(card: _Card) -> None:
        card.load(1, 5 * GIB)
        card.load(2, 4 * GIB)
        assert card.take(1, 5 * GIB)
        assert not card.take(2, 4 * GIB)
        await asyncio.sleep(0)

    began, allocated = play(story).said
    assert "bytes began with" in began
    assert "no other program grew" in allocated


def test_room_that_another_program_takes_is_nobodys_fault() -> None:
    async def story(card: _Card) -> None:
        card.load(1, 5 * GIB)
        card.ledger.set_foreign(CARD, 4 * GIB)
        assert not card.take(1, 5 * GIB)
        card.ledger.release(1)
        card.ledger.set_foreign(CARD, 9 * GIB)
        assert card.ledger.free(CARD) == 0

    card = play(story)
    assert card.said == []
    assert card.ledger.counts.no_room == 1
