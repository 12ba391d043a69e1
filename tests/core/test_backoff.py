"""Backoff: doubling, cap, jitter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aivailable.core.backoff import delay_s


@pytest.mark.parametrize(
    ("attempt", "jitter", "expected"),
    [
        (1, 0.0, 1.0),
        (2, 0.0, 2.0),
        (4, 0.0, 8.0),
        (5, 0.0, 10.0),
        (10_000, 0.0, 10.0),
        (2, 0.5, 1.5),
    ],
)
def test_doubles_up_to_the_cap(attempt: int, jitter: float, expected: float) -> None:
    assert delay_s(attempt, base_s=1.0, cap_s=10.0, jitter=jitter) == expected


@given(st.integers(0, 10**6), st.floats(0, 1, exclude_max=True))
def test_stays_between_half_the_base_and_the_cap(attempt: int, jitter: float) -> None:
    assert 0.5 <= delay_s(attempt, base_s=1.0, cap_s=60.0, jitter=jitter) <= 60.0
