"""The scheduler's laws, without an engine."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aivailable.wire.generation import Generate
from aivailable.worker.batcher import REPLAY_CHUNK_TOKENS, WAITING_MAX_JOBS, Batcher
from aivailable.worker.engine import Part
from aivailable.worker.job import Job

CHUNK, BUDGET = 16, 32


def job(name: str, prompt: int | tuple[int, ...], generated: int = 0, limit: int = 1000) -> Job:
    ids = tuple(range(prompt)) if isinstance(prompt, int) else prompt
    return Job(
        Generate(name, "d", prompt_ids=ids, generated_ids=(7,) * generated),
        ids,
        limit=limit,
        arrived_s=0.0,
        piece=lambda token: b"x",
        is_end=lambda token: False,
    )


def keep_all(slot: int, length: int) -> int:
    return length


def step(batcher: Batcher) -> tuple[Part, ...]:
    """One step in which every wanted row yields token 7."""
    parts = batcher.plan()
    for part in parts:
        moved = batcher.advance(part)
        if part.wants_logits:
            moved.tokens.append(7)
    return parts


def test_wrong_sizes_are_refused() -> None:
    for sizes in ((0, 1, 1), (1, 0, 1), (1, 8, 4)):
        with pytest.raises(ValueError):
            Batcher(*sizes)


def test_rows_go_before_chunks_and_chunks_keep_their_size() -> None:
    batcher = Batcher(3, CHUNK, BUDGET)
    batcher.submit(job("a", 3))
    batcher.admit(keep_all)
    step(batcher)
    batcher.submit(job("b", 40))
    batcher.submit(job("c", 50))
    batcher.admit(keep_all)
    sizes = [[len(part.tokens) for part in step(batcher)] for _ in range(5)]
    assert sizes == [[1, 16, 16], [1, 16, 16], [1, 8, 16], [1, 1, 2], [1, 1, 1]]


def test_prefill_takes_turns_when_the_budget_is_one_chunk() -> None:
    batcher = Batcher(2, CHUNK, CHUNK)
    batcher.submit(job("long", 64))
    batcher.submit(job("short", 10))
    long, short = batcher.admit(keep_all)
    slots = [[part.slot for part in step(batcher)] for _ in range(3)]
    assert slots == [[long.slot], [short.slot], [short.slot, long.slot]]


def test_waiting_is_first_in_first_out() -> None:
    batcher = Batcher(1, CHUNK, BUDGET)
    jobs = [job(name, 4) for name in "abc"]
    for item in jobs:
        batcher.submit(item)
    for item in jobs:
        assert batcher.admit(keep_all) == (item,)
        batcher.release(item)
    assert (batcher.busy, batcher.waiting) == (0, 0)


def test_the_line_is_bounded() -> None:
    batcher = Batcher(1, CHUNK, BUDGET)
    assert all(batcher.submit(job(str(number), 1)) for number in range(WAITING_MAX_JOBS))
    assert not batcher.submit(job("one too many", 1))


def test_replay_goes_in_its_own_chunks_after_the_whole_prompt() -> None:
    batcher = Batcher(1, CHUNK, BUDGET)
    batcher.submit(job("a", 20, generated=40))
    batcher.admit(keep_all)
    steps = [step(batcher) for _ in range(5)]
    assert [len(parts[0].tokens) for parts in steps] == [16, 4, REPLAY_CHUNK_TOKENS, 8, 1]
    assert [parts[0].wants_logits for parts in steps] == [False, False, False, True, True]


def test_prefix_reuse_keeps_whole_chunks_and_the_best_slot() -> None:
    batcher = Batcher(2, CHUNK, BUDGET)
    first, other = job("a", 50), job("b", tuple(range(900, 940)))
    batcher.submit(first)
    batcher.submit(other)
    batcher.admit(keep_all)
    while not (first.decoding and other.decoding):
        step(batcher)
    slot = first.slot
    batcher.release(first)
    batcher.release(other)
    again = job("c", 50)
    batcher.submit(again)
    batcher.admit(keep_all)
    assert (again.slot, again.cached, again.fed) == (slot, 48, 48)
    batcher.release(again, reusable=False)
    fresh = job("d", 50)
    batcher.submit(fresh)
    batcher.admit(keep_all)
    assert fresh.cached == 0


def test_an_engine_that_cannot_keep_is_believed() -> None:
    batcher = Batcher(1, CHUNK, BUDGET)
    for name in "ab":
        item = job(name, 50)
        batcher.submit(item)
        batcher.admit(lambda slot, length: 0)
        assert item.fed == 0
        while not item.decoding:
            step(batcher)
        batcher.release(item)


class Laws(RuleBasedStateMachine):
    """Random requests, cancellations and steps never break the scheduler's promises."""

    @initialize(slots=st.integers(1, 4))
    def start(self, slots: int) -> None:
        self.slots = slots
        self.batcher = Batcher(slots, CHUNK, BUDGET)
        self.live: list[Job] = []
        self.order: list[str] = []
        self.number = 0

    @rule(prompt=st.integers(1, 100), generated=st.integers(0, 70))
    def submit(self, prompt: int, generated: int) -> None:
        self.number += 1
        item = job(str(self.number), prompt, generated)
        assert self.batcher.submit(item)
        self.live.append(item)
        self.order.append(item.request_id)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.live))
        self.batcher.release(item)
        self.live.remove(item)
        if item.request_id in self.order:
            self.order.remove(item.request_id)
        assert self.batcher.find(item.request_id) is None

    @rule()
    def run_step(self) -> None:
        for item in self.batcher.admit(keep_all):
            assert item.request_id == self.order.pop(0)
        assert not self.order or self.batcher.busy == self.slots
        fed = {item.slot: item.fed for item in self.live if item.slot >= 0}
        parts = self.batcher.plan()
        assert parts == self.batcher.plan()
        assert bool(parts) == bool(self.batcher.busy)
        assert len({part.slot for part in parts}) == len(parts)
        rows = [part for part in parts if self.batcher.job_in(part.slot).decoding]
        assert list(parts[: len(rows)]) == rows
        assert {part.slot for part in rows} == {item.slot for item in self.live if item.decoding}
        prefill = [part for part in parts if part not in rows]
        assert sum(len(part.tokens) for part in prefill) <= BUDGET
        assert all(part.position == fed[part.slot] for part in parts)
        for part in parts:
            moved = self.batcher.advance(part)
            assert part.wants_logits == (moved.fed == len(moved.tokens))
            if part.wants_logits:
                moved.tokens.append(7)

    @invariant()
    def slots_are_neither_leaked_nor_shared(self) -> None:
        running = [item.slot for item in self.live if item.slot >= 0]
        assert len(set(running)) == len(running) == self.batcher.busy <= self.slots
        assert self.batcher.busy + self.batcher.waiting == len(self.live)


TestLaws = Laws.TestCase
TestLaws.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
