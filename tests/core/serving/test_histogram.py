"""Counts in ranges, as Prometheus wants them."""

from __future__ import annotations

from aivailable.core.serving.histogram import Histogram


def test_a_value_belongs_to_the_first_bound_that_is_not_smaller() -> None:
    found = Histogram((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 2.1, 100.0):
        found.observe(value)
    assert found.cumulative() == (2, 4, 6)
    assert found.sum == 106.6


def test_a_copy_does_not_change_with_its_original() -> None:
    found = Histogram((1.0,))
    found.observe(0.5)
    copied = found.copy()
    found.observe(3.0)
    assert (copied.cumulative(), copied.sum) == ((1, 1), 0.5)
    assert (found.cumulative(), found.sum) == ((1, 2), 3.5)
