"""What continuation.py measures differences with."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fixtures.near_ties import CHANGE_STEP, change_needed, draw_at, first_difference, noise
from hypothesis import given, settings
from hypothesis import strategies as st

from aivailable.wire.generation import Sampling
from aivailable.worker.sampling.dice import DRAW, gumbels

GREEDY = Sampling(temperature=0.0)
ROW = {7: -1.0, 3: -1.5, 900: -2.5, 40: -6.0}


def test_greedy_needs_half_the_gap_of_the_top_two() -> None:
    draw = draw_at(GREEDY, 0)
    assert draw(ROW) == 7
    assert 0.25 <= change_needed(ROW, 3, draw) <= 0.25 * CHANGE_STEP
    assert change_needed(ROW, 1, draw) == math.inf


def test_a_draw_needs_half_the_distance_of_what_it_compares() -> None:
    sampling = Sampling(0.5, 16, 1.0, 0.0, seed=5)
    for position in range(20):
        draw = draw_at(sampling, position)
        ids = np.array(list(ROW), np.int64)
        scores = np.array(list(ROW.values())) / 0.5 + gumbels(5, position, DRAW, ids)
        second, first = np.argsort(scores)[-2:]
        assert draw(ROW) == ids[first]
        half = (scores[first] - scores[second]) * 0.5 / 2
        assert change_needed(ROW, int(ids[second]), draw) == pytest.approx(half, rel=0.06)


def test_what_a_filter_cut_needs_to_come_over_its_floor() -> None:
    floor = math.log(0.5)
    sampling = Sampling(1.0, 16, 1.0, 0.5, seed=5)
    row = {7: 0.0, 3: floor - 0.5}
    position = next(
        at for at in range(50) if draw_at(Sampling(1.0, 16, 1.0, 0.0, seed=5), at)(row) == 3
    )
    draw = draw_at(sampling, position)
    assert draw(row) == 7
    assert change_needed(row, 3, draw) == pytest.approx(0.25, rel=0.06)
    assert change_needed({7: 0.0, 3: floor + 0.1}, 7, draw) == pytest.approx(0.05, rel=0.06)


@settings(max_examples=60)
@given(
    st.lists(st.floats(-8, 0, width=32), min_size=4, max_size=16),
    st.lists(st.floats(-0.25, 0.25, width=32), min_size=16, max_size=16),
    st.integers(0, 1000),
    st.sampled_from([GREEDY, Sampling(0.9, 16, 1.0, 0.0, seed=1), Sampling(0.9, 16, seed=1)]),
)
def test_two_rows_that_draw_differently_are_noisier_than_the_change_that_it_takes(
    logits: list[float], moved: list[float], position: int, sampling: Sampling
) -> None:
    one = dict(enumerate(logits))
    two = {token: logit + moved[token] for token, logit in one.items()}
    draw = draw_at(sampling, position)
    if draw(one) != draw(two):
        needed = min(change_needed(one, draw(two), draw), change_needed(two, draw(one), draw))
        assert needed <= noise(one, two) * CHANGE_STEP + 1e-6


def test_noise_is_what_the_rows_do_not_have_in_common() -> None:
    assert noise(ROW, {token: logit + 3 for token, logit in ROW.items()}) == pytest.approx(0)
    assert noise({1: 0.0, 2: 0.0, 3: 5.0}, {1: 0.1, 2: -0.1}) == pytest.approx(0.1)
    assert noise({1: 0.0}, {2: 0.0}) == math.inf


def test_first_difference() -> None:
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 4, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2
