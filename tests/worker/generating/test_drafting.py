"""Guesses from the text itself: the lookup, what is worth it, and that no answer depends on it."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from fixtures.letter_tokens import END, LetterTokens
from fixtures.sessions import ListPort, run
from hypothesis import given, settings
from hypothesis import strategies as st

from aivailable.wire.generation import (
    Cancel,
    Constraint,
    Failed,
    Finished,
    Generate,
    Sampling,
    TokenLogprob,
)
from aivailable.wire.worker import DeviceClaim, Load, Pause, Resume
from aivailable.worker.engine import CellsExhausted, DecodeFailed, Logits, Part
from aivailable.worker.engine_fake import FakeEngine
from aivailable.worker.generating.drafting import (
    CANDIDATES_MAX,
    INDEX_STEP_TOKENS,
    MATCH_MAX_TOKENS,
    OTHER_EVERY_STEPS,
    Costs,
    Drafter,
    Drafting,
    Lookup,
)
from aivailable.worker.generating.step_loop import StepLoop

DRAFT = 4
LETTERS = LetterTokens()
GREEDY = Sampling(temperature=0.0)


# --- the lookup


def test_the_longest_common_past_wins_then_the_latest() -> None:
    lookup = Lookup()
    assert lookup.find([1, 2, 3, 9, 5, 2, 3, 8, 1, 2, 3], 1) == ([9], 3)
    assert Lookup().find([2, 3, 7, 2, 3, 8, 2, 3], 2) == ([8, 2], 2)
    assert Lookup().find([1, 2, 3], 4) == ([], 0)
    assert Lookup().find([5], 4) == ([], 0)


def test_a_text_that_overlaps_itself_goes_on_with_its_period() -> None:
    assert Lookup().find([1, 2, 3, 1, 2, 3, 1], 5) == ([2, 3, 1, 2, 3], 4)
    assert Lookup().find([4, 4, 4], 3)[0] == [4, 4, 4]


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(0, 6))
def test_a_guess_followed_the_longest_past_of_the_latest_places(ids: list[int], most: int) -> None:
    lookup = Lookup()
    for length in range(len(ids) + 1):
        tokens = ids[:length]
        found, past = lookup.find(tokens, most)
        ends = range(1, length - 1)
        places = [at for at in ends if tokens[at - 1 : at + 1] == tokens[-2:]][-CANDIDATES_MAX:]
        if not places or not most:
            assert (found, past) == ([], 0)
            continue
        pasts = [_past(tokens, at) for at in places]
        assert past == max(pasts)
        start = max(at for at, one in zip(places, pasts, strict=True) if one == past) + 1
        text = list(tokens)
        for guess in found:
            assert guess == text[start]
            text.append(guess)
            start += 1
        assert len(found) == most


def _past(tokens: list[int], at: int) -> int:
    length = 0
    while length < min(MATCH_MAX_TOKENS, at + 1) and tokens[at - length] == tokens[-1 - length]:
        length += 1
    return length


def test_a_long_prompt_enters_the_index_in_pieces() -> None:
    tokens = [1, 2, 3, *range(10, 10 + 2 * INDEX_STEP_TOKENS), 8, 9, 7, 8, 9]
    lookup = Lookup()
    assert lookup.find(tokens, 1) == ([], 0)
    assert lookup.find(tokens, 1) == ([], 0)
    assert lookup.find(tokens, 1) == ([7], 2)


# --- what is worth it


@dataclass
class Line:
    """A row as drafting sees it."""

    slot: int
    tokens: list[int]
    left: int = 100
    drafter: Drafter = field(default_factory=Drafter)


def measured(cost_of_token: float, rows: int = 1, most: int = DRAFT) -> Drafting:
    drafting = Drafting(most)
    for width in (rows, rows, rows, rows + most):
        drafting.observe(width, 1.0 + cost_of_token * (width - rows))
    return drafting


def count(drafts: dict[int, tuple[int, ...]] | Any) -> int:
    return sum(map(len, drafts.values()))


def test_nothing_is_guessed_before_the_plain_step_was_measured() -> None:
    drafting, line = Drafting(DRAFT), Line(0, [1, 2, 1, 2])
    assert drafting.plan([line], 100) == {}
    drafting.observe(1, 1.0)
    drafting.observe(1, 1.0)
    assert drafting.plan([line], 100) == {0: (1, 2, 1, 2)}
    assert drafting.plan([replace(line, left=3)], 100) == {0: (1, 2)}
    assert drafting.plan([line], 1) == {0: (1,)}
    drafting.stop()
    assert drafting.plan([line], 100) == {}


def test_guesses_are_carried_where_a_wider_step_costs_little() -> None:
    for cost, carried in ((0.0, DRAFT), (0.1, 2), (1.0, 0)):
        line = Line(0, [1, 2, 1, 2])
        assert count(measured(cost).plan([line], 100)) == carried


def test_wrong_guesses_end_guessing_and_right_ones_bring_it_back() -> None:
    line, drafting = Line(0, [1, 2, 1, 2]), measured(0.1)
    for _ in range(20):
        drafting.plan([line], 100)
        line.drafter.learn(99)
    assert drafting.plan([line], 100) == {}
    for _ in range(20):
        drafting.plan([line], 100)
        line.drafter.learn(1)
    assert count(drafting.plan([line], 100)) == DRAFT


def test_the_surest_guesses_go_first_and_others_are_not_kept_waiting() -> None:
    sure, unsure = Line(0, [1, 2, 1, 2]), Line(1, [5, 6, 5, 6])
    for _ in range(20):
        sure.drafter.propose(sure.tokens, 1)
        sure.drafter.learn(1)
        unsure.drafter.propose(unsure.tokens, 1)
        unsure.drafter.learn(0)
    drafting = Drafting(DRAFT)
    for width in (2, 2, 2, 6):
        drafting.observe(width, 1.0 + 0.02 * (width - 2))
    assert drafting.plan([unsure, sure], 3) == {0: (1, 2, 1)}
    # Each guess would pay, but three of them stop the other stream for twice as long.
    steep = Drafting(DRAFT)
    for width, cost in ((2, 1.0), (2, 1.0), (3, 1.2), (4, 1.4), (5, 2.0), (6, 2.1)):
        steep.observe(width, cost)
    assert count(steep.plan([sure, unsure], 100)) == 2


def test_the_other_choice_is_measured_again_from_time_to_time() -> None:
    for cost in (0.0, 1.0):
        drafting, line = measured(cost), Line(0, [1, 2, 1, 2])
        carried = [bool(drafting.plan([line], 100)) for _ in range(4 * OTHER_EVERY_STEPS)]
        usual, other = (True, False) if cost == 0.0 else (False, True)
        assert 2 <= carried.count(other) <= 4
        assert carried[:OTHER_EVERY_STEPS].count(usual) >= OTHER_EVERY_STEPS - 1


def test_costs_between_and_beyond_what_is_known() -> None:
    costs = Costs()
    assert costs.of(3) == 0.0
    costs.observe(2, 1.0)
    costs.observe(6, 3.0)
    assert [costs.of(width) for width in (1, 2, 3, 6, 9)] == [1.0, 1.0, 1.5, 3.0, 3.0]
    for elapsed in (9.0, 2.0):
        costs.observe(6, elapsed)
    assert costs.of(6) == 2.0
    costs.observe(6, 1.0)
    assert costs.of(6) == 1.75
    costs.observe(6, 100.0)
    assert costs.of(6) == pytest.approx(1.75 * 1.25)


# --- the step loop


class Mumbler(FakeEngine):
    """Says what depends on its last two tokens alone, so that it repeats itself; ends seldom."""

    vocabulary = LETTERS.vocabulary
    said = "abcdef,."

    def row(self, tokens: Sequence[int]) -> Logits:
        seed = zlib.crc32(np.asarray(tokens[-2:], dtype="<i4").tobytes())
        row = np.full(self.vocabulary, -9.0, np.float32)
        letters = LETTERS.spell(self.said)
        row[letters] = np.random.default_rng(seed).normal(0, 3, len(letters))
        row[END] = 2.0 if len(tokens) % 31 == 0 else -9.0
        return row

    def piece(self, token: int) -> bytes:
        return LETTERS.piece(token)

    def is_end(self, token: int) -> bool:
        return token == END


def engine(draft: int, kind: type[Mumbler] = Mumbler, slots: int = 3) -> Mumbler:
    device = DeviceClaim("sim0", "sim", 0, 1)
    load = Load("r", "fake", "", 128, slots, (device,), {"draft": str(draft)})
    return kind(load, lambda phase, fraction: None)


def ask(name: str, text: str = "ab,ab,", **more: Any) -> Generate:
    prompt = tuple(LETTERS.spell(text))
    return Generate(
        name,
        "d",
        prompt_ids=prompt,
        **{"max_tokens": 40, "sampling": GREEDY, "deadline_s": 1e9, **more},
    )


@dataclass
class Told:
    """Everything that left the session for one request."""

    ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    end: Finished | Failed | None = None


def told(port: ListPort) -> dict[str, Told]:
    found: dict[str, Told] = {}
    for step in port.sent:
        for one in step.tokens:
            it = found.setdefault(one.request_id, Told())
            it.ids += one.ids
            it.text += one.text
            it.logprobs += one.logprobs
        for end in (*step.finished, *step.failed):
            it = found.setdefault(end.request_id, Told())
            # What was warm when a request got its slot depends on how fast the others were.
            it.end = replace(end, cached_tokens=0) if isinstance(end, Finished) else end
    return found


def session(draft: int, port: ListPort, kind: type[Mumbler] = Mumbler, slots: int = 3) -> StepLoop:
    # Every step takes as long as any other: guesses always pay.
    return StepLoop(engine(draft, kind, slots), port, clock=itertools.count().__next__)


def answers(
    draft: int, *requests: Generate, kind: type[Mumbler] = Mumbler, slots: int = 3
) -> tuple[dict[str, Told], ListPort]:
    port = ListPort(*requests)
    run(session(draft, port, kind, slots), port, len(requests))
    return told(port), port


def counters(port: ListPort) -> Any:
    return next(step.counters for step in reversed(port.sent) if step.counters is not None)


WORDS = Constraint("gbnf", 'root ::= ([a-d] [a-f] "," )* "."')
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0]),
    top_k=st.sampled_from([0, 4]),
    seed=st.integers(0, 5),
    repeat_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.2]),
    dry_multiplier=st.sampled_from([0.0, 0.8]),
    xtc_probability=st.sampled_from([0.0, 0.5]),
    mirostat=st.sampled_from([0, 0, 2]),
)
REQUESTS = st.fixed_dictionaries(
    {
        "text": st.text("abc,", min_size=1, max_size=20),
        "sampling": SAMPLINGS,
        "max_tokens": st.sampled_from([1, 2, 5, 40]),
        "stop": st.sampled_from([(), (",a",), ("bcd", "f.")]),
        "constraint": st.sampled_from([None, None, WORDS]),
        "logprobs": st.sampled_from([None, 2]),
        "ignore_eos": st.booleans(),
        "generated_ids": st.sampled_from([(), tuple(LETTERS.spell("ab,"))]),
    }
)


@settings(max_examples=80, deadline=None)
@given(st.lists(REQUESTS, min_size=1, max_size=4), st.integers(1, 9), st.integers(1, 3))
def test_answers_are_what_they_are_without_guesses(
    asked: list[dict[str, Any]], draft: int, slots: int
) -> None:
    requests = [ask(f"r{number}", **one) for number, one in enumerate(asked)]
    assert answers(draft, *requests, slots=slots)[0] == answers(0, *requests, slots=slots)[0]


def test_right_guesses_save_steps_and_leave_in_one_frame() -> None:
    plain, before = answers(0, ask("a", max_tokens=60, ignore_eos=True))
    drafted, port = answers(DRAFT, ask("a", max_tokens=60, ignore_eos=True))
    assert drafted == plain
    now = counters(port)
    assert now.steps < counters(before).steps / 2
    assert now.drafted_tokens >= now.accepted_tokens > 30
    assert now.generated_tokens == 60 == now.accepted_tokens + now.steps
    assert max(len(one.ids) for step in port.sent for one in step.tokens) == 1 + DRAFT
    assert all(len(step.tokens) <= 1 for step in port.sent)


def test_the_cache_holds_what_was_accepted_and_no_step_is_too_wide() -> None:
    made = engine(9, slots=3)
    port = ListPort(*(ask(name, max_tokens=90, ignore_eos=True) for name in "abc"))
    one = StepLoop(made, port, clock=itertools.count().__next__)
    widest = 0
    decode = made.decode

    def watched(parts: Sequence[Part]) -> list[Logits]:
        nonlocal widest
        widest = max(widest, sum(len(part.tokens) for part in parts))
        return decode(parts)

    made.decode = watched  # type: ignore[method-assign]
    while len(told(port)) < 3 or any(each.end is None for each in told(port).values()):
        one.serve_once()
        for job in one._batcher.running():
            assert made._cache[job.slot] == job.tokens[: job.fed]
            assert job.fed in (0, len(job.tokens) - 1)
    assert 10 < widest <= made.step_tokens


def test_cancelling_and_pausing_between_drafted_steps() -> None:
    whole, _ = answers(0, ask("a", max_tokens=90, ignore_eos=True))
    port = ListPort(*(ask(name, max_tokens=90, ignore_eos=True) for name in "ab"))
    one = session(DRAFT, port)
    for _ in range(8):
        one.serve_once()
    port.inbox = [Cancel("b"), Pause("a")]
    one.serve_once()
    so_far = told(port)
    end = so_far["b"].end
    assert isinstance(end, Finished)
    assert (end.reason, end.completion_tokens) == ("cancelled", len(so_far["b"].ids))
    port.inbox = [Resume("a")]
    run(one, port, 1)
    assert told(port)["a"] == whole["a"]


class Poisoned(Mumbler):
    """Fails every decode that is wider than its rows, or only holds the poison."""

    poison = -1

    def decode(self, parts: Sequence[Part]) -> list[Logits]:
        rows = super().decode(parts)
        drafted = any(part.drafted for part in parts)
        if drafted or any(self.poison in part.tokens for part in parts):
            raise DecodeFailed("poisoned")
        return rows


def test_a_failed_decode_is_tried_again_without_guesses() -> None:
    names = [ask(name, max_tokens=60, ignore_eos=True) for name in "ab"]
    drafted, port = answers(DRAFT, *names, kind=Poisoned)
    assert drafted == answers(0, *names)[0]
    assert counters(port).accepted_tokens == 0


class Rigid(Mumbler):
    """Cannot cut a sequence but at its end."""

    def trim(self, slot: int, length: int) -> int:
        return super().trim(slot, length if length >= len(self._cache[slot]) else 0)


def test_where_a_cache_cannot_be_cut_it_is_filled_again_and_guessing_ends() -> None:
    names = [ask(name, text, max_tokens=60) for name, text in (("a", "ab,ab,"), ("b", "cde,cde"))]
    port = ListPort(*names)
    one = session(DRAFT, port, Rigid)
    run(one, port, 2)
    assert told(port) == answers(0, *names)[0]
    assert counters(port).drafted_tokens > 0
    assert not one._drafting.active


class Cramped(Mumbler):
    """Has fewer cells than drafted rows would like."""

    cells = 70

    def decode(self, parts: Sequence[Part]) -> list[Logits]:
        if sum(map(len, self._cache)) + sum(len(part.tokens) for part in parts) > self.cells:
            raise CellsExhausted("full")
        return super().decode(parts)


def test_guesses_give_way_before_anybody_else_does() -> None:
    names = [ask(name, max_tokens=29, ignore_eos=True) for name in "ab"]
    drafted, port = answers(8, *names, kind=Cramped)
    assert drafted == answers(0, *names)[0]
    assert counters(port).failed == 0


def test_what_was_drawn_before_a_failure_is_told() -> None:
    class Broken(Mumbler):
        def row(self, tokens: Sequence[int]) -> Logits:
            row = super().row(tokens)
            return row if len(tokens) < 40 else np.full_like(row, np.nan)

    plain, _ = answers(0, ask("a", max_tokens=60), kind=Broken)
    drafted, port = answers(DRAFT, ask("a", max_tokens=60), kind=Broken)
    assert drafted == plain
    assert isinstance(plain["a"].end, Failed)
    assert len(plain["a"].ids) == 34
    assert counters(port).accepted_tokens > 0


def test_prefill_goes_before_guesses() -> None:
    port = ListPort(ask("a", max_tokens=90, ignore_eos=True))
    one = session(DRAFT, port)
    for _ in range(12):
        one.serve_once()
    assert any(part.drafted for part in one._batcher.plan(64, one._drafts()))
    port.inbox = [ask("b", "bcdef," * 15)]
    for message in port.receive_ready():
        one._take(message)
    one._enter()
    one._batcher.admit()
    parts = one._batcher.plan(64, one._drafts())
    assert [part.drafted for part in parts] == [0] * len(parts)
    assert len(parts[-1].tokens) > 2
