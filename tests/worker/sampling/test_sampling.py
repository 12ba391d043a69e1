"""Sampling against a slow, obvious reference."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aivailable.errors import RequestError
from aivailable.wire.generation import Sampling
from aivailable.worker.sampling.candidates import largest, nucleus
from aivailable.worker.sampling.dice import REDRAW, seed_of, uniform
from aivailable.worker.sampling.logprobs import logprob
from aivailable.worker.sampling.parameters import check_sampling
from aivailable.worker.sampling.sampler import NoToken, Sampler

Row = npt.NDArray[np.float32]
PLAIN = Sampling(1.0, 0, 1.0, 0.0)
LOGITS = st.lists(
    st.floats(-20, 20, width=32).map(lambda value: round(value, 2)), min_size=1, max_size=40
)


def row_of(values: list[float]) -> Row:
    return np.array(values, dtype=np.float32)


def sampler(sampling: Sampling, size: int, seed: int = 0) -> Sampler:
    return Sampler(
        sampling, seed, lambda token: bytes([97 + token % 26]), np.empty(size, np.float32)
    )


def distribution(row: Row, sampling: Sampling) -> dict[int, float]:
    found = sampler(sampling, len(row)).distribution(row, 0)
    return dict(zip(found.ids.tolist(), found.weights().tolist(), strict=True))


def reference(logits: list[float], sampling: Sampling) -> dict[int, float]:
    """The chain as the words say it: top-k, top-p, min-p, temperature."""
    rows = sorted(((value, -token) for token, value in enumerate(logits)), reverse=True)
    left = [(-minus, value) for value, minus in rows]
    if sampling.top_k > 0:
        left = left[: sampling.top_k]
    best = left[0][1]
    weights = [math.exp(value - best) for _, value in left]
    if sampling.top_p < 1.0:
        kept, mass = 0, 0.0
        while kept < len(left) and mass < sampling.top_p * sum(weights):
            mass += weights[kept]
            kept += 1
        left, weights = left[: max(1, kept)], weights[: max(1, kept)]
    kept = sum(weight >= sampling.min_p for weight in weights) if sampling.min_p else len(left)
    left = left[: max(1, kept)]
    scaled = [math.exp((value - best) / sampling.temperature) for _, value in left]
    return {token: weight for (token, _), weight in zip(left, scaled, strict=True)}


@given(
    LOGITS,
    st.integers(0, 50),
    st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    st.sampled_from([0.0, 0.05, 0.5]),
    st.sampled_from([0.3, 1.0, 2.0]),
)
def test_distribution_equals_the_reference(
    values: list[float], top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    sampling = Sampling(temperature, top_k, top_p, min_p)
    row = row_of(values)
    expected = reference([float(value) for value in row], sampling)
    got = distribution(row, sampling)
    # Float sums may differ in the last digit exactly at the top-p border: one candidate more.
    assert set(got) <= set(expected) or set(expected) <= set(got)
    assert abs(len(got) - len(expected)) <= 1
    for token in set(got) & set(expected):
        assert got[token] == pytest.approx(expected[token], rel=1e-5)


@given(st.integers(1, 400), st.integers(0, 2**32), st.sampled_from([0.5, 5.0]))
def test_the_largest_of_a_large_row(count: int, seed: int, step: float) -> None:
    random = np.random.default_rng(seed)
    # Coarse values: many are equal, and then the smaller id goes first.
    row = (np.round(random.normal(0, 3, 5000) / step) * step).astype(np.float32)
    order = np.lexsort((np.arange(len(row)), -row))[:count]
    assert largest(row, count).ids.tolist() == order.tolist()


@given(st.integers(0, 2**32), st.sampled_from([0.1, 0.9, 0.999999]), st.sampled_from([0, 0.01]))
def test_the_nucleus_of_a_large_row(seed: int, top_p: float, min_p: float) -> None:
    row = np.random.default_rng(seed).normal(0, 2, 3000).astype(np.float32)
    found = nucleus(row, top_p, min_p, np.empty_like(row))
    expected = reference([float(value) for value in row], Sampling(1.0, 0, top_p, min_p))
    assert abs(len(found.ids) - len(expected)) <= 1
    assert set(found.ids.tolist()[:-1]) <= set(expected)


@given(LOGITS, st.integers(0, 2**62), st.integers(0, 4096))
def test_a_draw_depends_on_seed_and_position_alone(
    values: list[float], seed: int, position: int
) -> None:
    row = row_of(values)
    first, second = (sampler(Sampling(), len(row), seed).draw(row, position) for _ in range(2))
    assert first == second
    assert 0 <= first < len(values)


@given(LOGITS)
def test_greedy_is_the_largest_and_the_first_of_equals(values: list[float]) -> None:
    row = row_of(values)
    assert sampler(Sampling(temperature=0), len(row)).draw(row, 0) == int(np.argmax(row))


def test_draws_follow_the_probabilities() -> None:
    row = np.log(row_of([0.5, 0.3, 0.15, 0.05]))
    one = sampler(PLAIN, 4, seed=3)
    drawn = Counter(one.draw(row, position) for position in range(4000))
    for token, share in enumerate((0.5, 0.3, 0.15, 0.05)):
        assert drawn[token] / 4000 == pytest.approx(share, abs=0.03)


def test_draws_from_a_whole_vocabulary_follow_the_probabilities() -> None:
    row = np.random.default_rng(2).normal(0, 1, 1000).astype(np.float32)
    row[500:] = -math.inf
    row[[3, 130, 499]] = 8.0
    one = sampler(replace(PLAIN, temperature=0.8), 1000, seed=4)
    drawn = Counter(one.draw(row, position) for position in range(3000))
    weights = np.exp(row.astype(float) / 0.8)
    for token in (3, 130, 499):
        share = float(weights[token] / weights.sum())
        assert drawn[token] / 3000 == pytest.approx(share, abs=0.03)
    assert max(drawn) < 500


def changed(sampling: Sampling, row: Row, prompt: list[int], answer: list[int]) -> list[float]:
    one = sampler(sampling, len(row))
    for token in prompt:
        one.take(token, answer=False)
    for token in answer:
        one.take(token, answer=True)
    return [float(value) for value in one.changed(row, [*prompt, *answer])]


def test_penalties() -> None:
    row = row_of([2.0, -2.0, 1.0, 0.0])
    repeated = changed(Sampling(repeat_penalty=2.0), row, [0, 1], [1])
    assert repeated == [1.0, -4.0, 1.0, 0.0]
    counted = Sampling(presence_penalty=0.5, frequency_penalty=0.25)
    assert changed(counted, row, [2], [0, 0, 3]) == [1.0, -2.0, 1.0, -0.75]
    assert sampler(Sampling(), 4).changed(row, [0, 1]) is row
    biased = changed(Sampling(logit_bias={"3": 5.0, "0": -1e9}), row, [], [])
    assert biased[1:] == [-2.0, 1.0, 5.0]
    assert biased[0] < -1e8
    assert row.tolist() == [2.0, -2.0, 1.0, 0.0]


def test_repeat_penalty_looks_back_as_far_as_it_was_told() -> None:
    row = row_of([2.0, 2.0])
    for window, expected in ((64, [2.0, 1.0]), (-1, [1.0, 1.0]), (0, [2.0, 2.0])):
        sampling = Sampling(repeat_penalty=2.0, repeat_last_n=window)
        assert changed(sampling, row, [0], [1] * 64) == expected


def test_rows_that_are_not_numbers_draw_nothing() -> None:
    for bad in (math.nan, math.inf):
        for sampling in (Sampling(), Sampling(temperature=0)):
            with pytest.raises(NoToken):
                sampler(sampling, 3).draw(row_of([1.0, bad, 0.0]), 0)
    with pytest.raises(NoToken):
        sampler(Sampling(), 2).draw(row_of([-math.inf, -math.inf]), 0)


@given(st.integers(0, 2**32))
def test_what_is_masked_is_never_drawn(seed: int) -> None:
    random = np.random.default_rng(seed)
    row = random.normal(0, 3, 1000).astype(np.float32)
    row[random.random(1000) < 0.98] = -math.inf
    row[7] = 0.0
    for sampling in (PLAIN, Sampling(), replace(PLAIN, typical_p=0.9), replace(PLAIN, mirostat=2)):
        one = sampler(sampling, 1000, seed)
        assert all(row[one.draw(row, position)] > -math.inf for position in range(20))


def test_without_a_seed_the_request_decides() -> None:
    assert seed_of(Sampling(seed=5), "a") == 5
    assert seed_of(Sampling(), "a") == seed_of(Sampling(), "a") != seed_of(Sampling(), "b")


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**40))
def test_uniform_is_a_number_below_one(seed: int, position: int) -> None:
    assert 0.0 <= uniform(seed, position) < 1.0
    assert uniform(seed, position) != uniform(seed, position, REDRAW)


def test_mirostat_is_a_function_of_rows_and_tokens() -> None:
    random = np.random.default_rng(5)
    rows = random.normal(0, 3, (30, 500)).astype(np.float32)
    for version in (1, 2):
        sampling = Sampling(1.0, mirostat=version, mirostat_tau=3.0, mirostat_eta=0.3)
        whole, before, after = (sampler(sampling, 500, 9) for _ in range(3))
        assert whole.needs_every_row

        def go_on(one: Sampler, positions: range) -> list[int]:
            drawn = []
            for position in positions:
                drawn.append(one.draw(rows[position], position))
                one.take(drawn[-1], answer=True)
            return drawn

        expected = go_on(whole, range(30))
        first = go_on(before, range(17))
        for position, token in enumerate(first):
            after.draw(rows[position], position)
            after.take(token, answer=True)
        assert first + go_on(after, range(17, 30)) == expected


def test_logprobs_are_of_the_raw_distribution() -> None:
    row = np.log(row_of([0.5, 0.25, 0.125, 0.125]))
    told = logprob(row, 1, 2, lambda token: bytes([97 + token]), np.empty_like(row))
    assert told.drawn.token == 1
    assert told.drawn.piece == b"b"
    assert told.drawn.logprob == pytest.approx(math.log(0.25), rel=1e-5)
    assert [one.token for one in told.top] == [0, 1]
    assert told.top[0].logprob == pytest.approx(math.log(0.5), rel=1e-5)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=math.nan),
        Sampling(temperature=math.inf),
        Sampling(repeat_penalty=0.0),
        Sampling(mirostat=3),
        Sampling(seed=2**63),
        Sampling(dry_allowed_length=-1),
        Sampling(logit_bias={"50": 1.0}),
        Sampling(logit_bias={"-1": 1.0}),
        Sampling(logit_bias={"x": 1.0}),
        Sampling(logit_bias={"1": math.inf}),
        Sampling(dry_sequence_breakers=("x" * 41,)),
    ],
)
def test_parameters_out_of_range_are_refused(sampling: Sampling) -> None:
    with pytest.raises(RequestError):
        check_sampling(sampling, 50)


def test_parameters_in_range_are_accepted() -> None:
    check_sampling(Sampling(), 50)
    check_sampling(Sampling(temperature=0, top_k=-1, top_p=2.0, logit_bias={"49": -1e9}), 50)


@given(
    st.lists(st.sampled_from([-2.0, 0.0, 1.0, 1.5, math.inf, math.nan]), min_size=3, max_size=3),
    st.dictionaries(st.sampled_from("012"), st.sampled_from([-math.inf, -1.0, 0.0, 1.0])),
    st.sampled_from([0.0, 0.5]),
    st.sampled_from([0.0, 1.0]),
)
def test_what_is_obvious_would_have_been_drawn(
    logits: list[float], bias: dict[str, float], temperature: float, presence: float
) -> None:
    row = np.array(logits, np.float32)
    made = sampler(Sampling(temperature=temperature, logit_bias=bias, presence_penalty=presence), 3)
    obvious = made.obvious(row)
    if obvious is not None:
        assert obvious == made.draw(made.changed(row, ()), 0)
    assert row.tobytes() == np.array(logits, np.float32).tobytes()


def test_the_largest_logit_is_obvious_only_where_nothing_can_overtake_it() -> None:
    row = np.array([1.0, 3.0, 2.0], np.float32)

    def obvious(**asked: Any) -> int | None:
        return sampler(Sampling(**{"temperature": 0.0, **asked}), 3).obvious(row)

    assert obvious() == 1
    assert obvious(logit_bias={"0": -1.0}) == 1
    assert obvious(logit_bias={"1": -1.0}) is None
    assert obvious(logit_bias={"2": 5.0}) is None
    assert obvious(temperature=1.0) is None
    assert obvious(repeat_penalty=1.1) is None
