"""The scheduler's laws, without an engine."""

from __future__ import annotations

import pytest
from fixtures.letter_tokens import LetterTokens
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aivailable.wire.generation import Generate
from aivailable.worker.answer import Prepared
from aivailable.worker.engine import Part
from aivailable.worker.generating.batcher import (
    REPLAY_CHUNK_TOKENS,
    SHORT_PROMPT_TOKENS,
    WAITING_MAX_JOBS,
    YOUNG_TOKENS,
    Batcher,
    Sizes,
)
from aivailable.worker.generating.job import Job
from aivailable.worker.generating.sequences import Sequences
from aivailable.worker.generating.token_tables import TokenTables

CHUNK, BUDGET = 32, 8


def job(name: str, prompt: int | tuple[int, ...], generated: int = 0, limit: int = 1000) -> Job:
    ids = tuple(range(prompt)) if isinstance(prompt, int) else prompt
    return Job(
        Generate(name, "d", prompt_ids=ids, generated_ids=(7,) * generated),
        Prepared(ids),
        TokenTables(LetterTokens()),
        limit=limit,
        arrived_s=0.0,
    )


class Lists:
    """Caches as lists. `keeps` false: an engine that can reuse nothing."""

    def __init__(self, count: int, *, keeps: bool = True) -> None:
        self.held: list[list[int]] = [[] for _ in range(count)]
        self.keeps = keeps
        self.forks: list[tuple[int, int, int]] = []

    def trim(self, slot: int, length: int) -> int:
        del self.held[slot][length if self.keeps else 0 :]
        return len(self.held[slot])

    def fork(self, source: int, target: int, length: int) -> int:
        self.forks.append((source, target, length))
        self.held[target] = self.held[source][:length]
        return length

    def reach(self, slot: int, length: int) -> bool:
        return self.keeps and len(self.held[slot]) >= length


class House:
    """A batcher over lists; a step yields token 7 for every wanted row."""

    def __init__(self, slots: int, *, warm: int = 4, replay: int = 1, keeps: bool = True) -> None:
        self.caches = Lists(slots + warm, keeps=keeps)
        self.sequences = Sequences(slots + warm, 10_000, self.caches)
        self.batcher = Batcher(Sizes(slots, CHUNK, CHUNK + slots, replay), self.sequences)
        self.computed = 0

    def submit(self, *jobs: Job) -> None:
        for item in jobs:
            assert self.batcher.submit(item)

    def step(self, budget: int = BUDGET) -> tuple[Part, ...]:
        self.batcher.admit()
        parts = self.batcher.plan(budget)
        for part in parts:
            held = self.caches.held[part.slot]
            assert len(held) == part.position
            held.extend(part.tokens)
            self.computed += len(part.tokens)
            moved = self.batcher.advance(part)
            if part.wants_logits and moved.fed == len(moved.tokens):
                moved.tokens.append(7)
        return parts

    def until_decoding(self, *jobs: Job) -> None:
        while not all(item.decoding for item in jobs):
            assert self.step()


def sizes(parts: tuple[Part, ...]) -> list[int]:
    return [len(part.tokens) for part in parts]


def test_wrong_sizes_are_refused() -> None:
    sequences = Sequences(1, 0, Lists(1))
    for wrong in (Sizes(0, 8, 8, 1), Sizes(1, 1, 8, 1), Sizes(1, 8, 4, 1)):
        with pytest.raises(ValueError):
            Batcher(wrong, sequences)


def opened(house: House, *tokens: int) -> None:
    """The house computed this opening before anything else."""
    number = house.sequences.open_with(tokens)
    house.caches.held[number] = list(tokens)


def test_the_opening_is_computed_once_however_short_it_is() -> None:
    house = House(2)
    opened(house, *range(900, 910))
    first = job("a", (*range(900, 910), 1, 2, 3))
    other = job("b", (*range(800, 810), 1, 2, 3))
    house.submit(first, other)
    house.until_decoding(first, other)
    assert (first.cached, other.cached) == (10, 0)
    second = job("c", (*range(900, 910), 1, 2, 4))
    shorter = job("d", (*range(900, 909), 1, 2, 4))
    house.batcher.release(first)
    house.batcher.release(other)
    house.submit(second, shorter)
    house.until_decoding(second, shorter)
    # Two tokens more are shared with the first job, whose cells lie who knows where.
    assert (second.cached, shorter.cached) == (10, 0)


def test_a_continuation_that_is_alone_starts_from_the_opening_like_the_first_time() -> None:
    house = House(2)
    opened(house, *range(10))
    first = job("a", 60)
    house.submit(first)
    house.until_decoding(first)
    house.batcher.release(first)
    again = job("b", 60, generated=3)
    house.submit(again)
    house.until_decoding(again)
    assert again.cached == 10


def test_the_opening_gives_way_last() -> None:
    house = House(2)
    opened(house, *range(10))
    item = job("a", 60)
    house.submit(item)
    house.until_decoding(item)
    house.batcher.release(item)
    assert house.sequences.evict()
    assert house.sequences.cached_length(list(range(60))) == 10
    assert house.sequences.evict()
    assert house.sequences.cached_length(list(range(60))) == 0
    assert not house.sequences.evict()


def grown(house: House, item: Job) -> None:
    """Until its row is no longer held for others' prompts."""
    while len(item.tokens) - item.prompt_tokens < YOUNG_TOKENS:
        house.step()


def test_rows_go_first_and_short_prompts_that_come_together_end_together() -> None:
    house = House(3)
    house.submit(old := job("a", 3))
    grown(house, old)
    house.submit(job("b", 40), job("c", tuple(range(100, 150))))
    planned = [house.step() for _ in range(4)]
    assert [sizes(parts) for parts in planned] == [[1, 14, 18], [1, 13, 16], [1, 13, 16], [1, 1, 1]]
    assert [part.wants_logits for parts in planned[:3] for part in parts[1:]] == [False] * 4 + [
        True
    ] * 2


@pytest.mark.parametrize("shortest", [15, 17, 19, 22, 25, 39])
def test_a_wave_of_many_ends_in_one_step(shortest: int) -> None:
    house = House(10)
    jobs = [job(str(n), tuple(range(n * 100, n * 100 + shortest + n % 3))) for n in range(10)]
    house.submit(*jobs)
    while not any(parts := [part.wants_logits for part in house.step()]):
        pass
    assert parts == [True] * 10


def test_an_answer_that_has_just_begun_comes_in_bursts_beside_a_wave() -> None:
    house = House(5)
    house.submit(young := job("a", 3))
    house.step()
    house.submit(*(job(str(n), tuple(range(n * 100, n * 100 + 60))) for n in range(1, 5)))
    rows = [[part.slot for part in house.step()].count(young.slot) for _ in range(9)]
    assert rows == [0, 0, 0, 1, 0, 0, 0, 1, 1]


def test_long_prompts_take_turns_within_their_budget() -> None:
    house = House(4)
    house.submit(row := job("row", 3))
    grown(house, row)
    length = SHORT_PROMPT_TOKENS + 100
    house.submit(job("long", length), job("other", tuple(range(1000, 1000 + length))))
    parts = [house.step()[1:] for _ in range(4)]
    assert [sizes(part) for part in parts] == [[BUDGET]] * 4
    assert len({part[0].slot for part in parts[:2]}) == 2
    house.submit(job("short", tuple(range(5000, 5040))))
    # The short one passes, and the long ones go on.
    assert sizes(house.step()) == [1, 24, 8]
    assert sizes(house.step()) == [1, 16, 8]


def test_no_prompt_chunk_is_a_single_token() -> None:
    house = House(1)
    house.submit(job("a", 33))
    assert [sizes(house.step()) for _ in range(3)] == [[31], [2], [1]]


def test_waiting_is_first_in_first_out() -> None:
    house = House(1)
    jobs = [job(name, 4) for name in "abc"]
    house.submit(*jobs)
    for item in jobs:
        assert house.batcher.admit() == (item,)
        house.batcher.release(item)
    assert (house.batcher.busy, house.batcher.waiting) == (0, 0)


def test_the_line_is_bounded() -> None:
    house = House(1)
    house.submit(*(job(str(number), 1) for number in range(WAITING_MAX_JOBS)))
    assert not house.batcher.submit(job("one too many", 1))


def test_a_lonely_replay_goes_as_the_first_time_and_in_chunks_beside_others() -> None:
    house = House(2)
    house.submit(job("a", 20, generated=40))
    assert [sizes(house.step()) for _ in range(4)] == [[20], [1], [1], [1]]
    house.submit(job("b", tuple(range(500, 510))))
    house.step()
    assert sizes(house.step()) == [1, REPLAY_CHUNK_TOKENS]


def test_a_shared_prefix_stays_with_its_owner_and_its_end_is_taken_over() -> None:
    house = House(2)
    first, other = job("a", 50), job("b", tuple(range(900, 940)))
    house.submit(first, other)
    house.until_decoding(first, other)
    house.step()
    slot = first.slot
    house.batcher.release(first)
    again = job("c", 45)
    house.submit(again)
    house.step()
    assert (again.cached, house.caches.forks) == (43, [(slot, again.slot, 43)])
    house.batcher.release(again)
    # What goes on where an idle sequence ends takes it over: nothing is lost.
    longer = job("d", (*range(50), 7, 8, 9, 10))
    house.submit(longer)
    house.batcher.admit()
    assert (longer.slot, longer.cached, len(house.caches.forks)) == (slot, 51, 1)


def test_eight_jobs_with_one_prefix_compute_it_once() -> None:
    house = House(8, warm=0)
    jobs = [job(str(n), (*range(800), *range(1000 + 20 * n, 1020 + 20 * n))) for n in range(8)]
    house.submit(*jobs)
    house.until_decoding(*jobs)
    decoded = sum(len(item.tokens) - item.prompt_tokens - 1 for item in jobs)
    assert house.computed - decoded == 800 + 8 * 20
    assert [item.cached for item in jobs] == [0] + [800] * 7


def test_a_follower_goes_its_own_way_when_its_leader_is_gone_or_paused() -> None:
    for end in ("cancel", "pause"):
        house = House(2)
        leader, follower = job("a", 200), job("b", 210)
        house.submit(leader, follower)
        house.step()
        house.step()
        assert (follower.slot, house.batcher.busy) == (-1, 2)
        if end == "cancel":
            house.batcher.release(leader)
        else:
            house.batcher.pause("a")
        house.until_decoding(follower)
        assert follower.cached == CHUNK * 2


def test_a_paused_job_keeps_its_place_and_others_go_on() -> None:
    house = House(2)
    first, other = job("a", 10), job("b", tuple(range(50, 60)))
    house.submit(first, other)
    house.until_decoding(first, other)
    house.batcher.pause("a")
    assert [part.slot for part in house.step()] == [other.slot]
    assert house.batcher.busy == 2
    house.batcher.resume("a")
    assert len(house.step()) == 2
    house.batcher.pause("a")
    house.batcher.release(first)
    assert [part.slot for part in house.step()] == [other.slot]


def test_the_youngest_gives_way_and_is_computed_again_but_not_for_ever() -> None:
    house = House(2)
    first, young = job("a", 10), job("b", tuple(range(50, 60)))
    house.submit(first, young)
    house.until_decoding(first, young)
    assert house.batcher.give_way() is young
    assert (young.fed, house.caches.held[young.slot]) == (0, [])
    house.until_decoding(young)
    for _ in range(5):
        house.batcher.give_way()
        house.until_decoding(first, young)
    assert house.batcher.give_way() is None


def test_the_least_recently_used_prompt_gives_way() -> None:
    house = House(1, warm=1)
    for name, start in (("a", 0), ("b", 100), ("c", 200)):
        item = job(name, tuple(range(start, start + 40)))
        house.submit(item)
        house.until_decoding(item)
        house.batcher.release(item)
    found = [house.sequences.cached_length(range(start, start + 40)) for start in (0, 100, 200)]
    assert found == [0, 40, 40]
    assert house.sequences.evict()
    assert house.sequences.evict()
    assert not house.sequences.evict()
    assert house.caches.held == [[], []]


def test_a_continuation_that_is_alone_computes_its_prompt_as_the_first_time() -> None:
    house = House(2)
    for others in (0, 1):
        first = job("a", 80)
        house.submit(first)
        house.until_decoding(first)
        house.batcher.release(first)
        beside = [job("other", tuple(range(500, 510))) for _ in range(others)]
        again = job("b", 80, generated=3)
        house.submit(*beside, again)
        house.batcher.admit()
        assert again.cached == (78 if others else 0)
        for item in (*beside, again):
            house.batcher.release(item)


def test_an_engine_that_cannot_keep_is_believed() -> None:
    house = House(1, keeps=False)
    for name in "ab":
        item = job(name, 50)
        house.submit(item)
        house.until_decoding(item)
        assert item.cached == 0
        house.batcher.release(item)


def test_digests_say_what_is_warm_and_are_bounded() -> None:
    house = House(2)
    for name in "ab":
        item = job(name, 50 if name == "a" else tuple(range(100, 150)))
        house.submit(item)
        house.until_decoding(item)
        house.sequences.mark(item.slot, (9, ord(name)))
        house.batcher.release(item)
    assert house.sequences.digests(64) == (9, ord("a"), ord("b"))
    assert house.sequences.digests(2) == (9, ord("b"))
    house.sequences.evict()
    assert house.sequences.digests(64) == (9, ord("b"))


class Laws(RuleBasedStateMachine):
    """Random requests, cancellations, pauses and steps never break the scheduler's promises."""

    @initialize(slots=st.integers(1, 4), warm=st.integers(0, 2))
    def start(self, slots: int, warm: int) -> None:
        self.slots = slots
        self.house = House(slots, warm=warm)
        self.batcher = self.house.batcher
        self.live: list[Job] = []
        self.paused: set[str] = set()
        self.number = 0

    @rule(prompt=st.integers(1, 100), start=st.integers(0, 1), generated=st.integers(0, 70))
    def submit(self, prompt: int, start: int, generated: int) -> None:
        self.number += 1
        item = job(str(self.number), tuple(range(start, start + prompt)), generated)
        self.house.submit(item)
        self.live.append(item)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.live))
        self.batcher.release(item)
        self.live.remove(item)
        self.paused.discard(item.request_id)
        assert self.batcher.find(item.request_id) is None

    @precondition(lambda self: self.live)
    @rule(data=st.data(), resume=st.booleans())
    def pause(self, data: st.DataObject, resume: bool) -> None:
        item = data.draw(st.sampled_from(self.live))
        if resume:
            self.batcher.resume(item.request_id)
            self.paused.discard(item.request_id)
        else:
            self.batcher.pause(item.request_id)
            self.paused.add(item.request_id)

    @rule(evict=st.booleans(), budget=st.integers(2, CHUNK))
    def run_step(self, evict: bool, budget: int) -> None:
        if evict:
            self.house.sequences.evict()
        self.batcher.admit()
        assert self.batcher.busy == min(self.slots, len(self.live))
        parts = self.batcher.plan(budget)
        assert parts == self.batcher.plan(budget)
        assert len({part.slot for part in parts}) == len(parts)
        working = [item for item in self.live if item.slot >= 0]
        moving = [item for item in working if item.request_id not in self.paused]
        assert bool(parts) == bool(moving)
        rows = [part for part in parts if self.batcher.job_in(part.slot).decoding]
        assert list(parts[: len(rows)]) == rows
        held = {item.slot for item in moving if item.decoding} - {part.slot for part in rows}
        assert len(parts) > len(rows) or not held
        for slot in held:
            young = self.batcher.job_in(slot)
            assert len(young.tokens) - young.replay_end < YOUNG_TOKENS
        assert {part.slot for part in parts} <= {item.slot for item in moving}
        assert sum(len(part.tokens) for part in parts[len(rows) :]) <= CHUNK
        for part in parts:
            item = self.batcher.job_in(part.slot)
            assert part.wants_logits == (part.position + len(part.tokens) == len(item.tokens))
        self.house.step(budget)
        for item in working:
            assert self.house.caches.held[item.slot] == item.tokens[: item.fed]

    @invariant()
    def slots_are_neither_leaked_nor_shared(self) -> None:
        running = [item.slot for item in self.live if item.slot >= 0]
        assert len(set(running)) == len(running) <= self.batcher.busy <= self.slots
        assert self.batcher.busy + self.batcher.waiting == len(self.live)


TestLaws = Laws.TestCase
TestLaws.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
