"""How often something took how long: counts in fixed ranges, cheap enough for every request.

Owns the numbers only. Filled by `replicas` and by the API; `api.monitoring.exposition` shows them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

WAIT_BOUNDS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""For waits in a queue: from "not at all" to as long as a client that does not stream waits."""


class Histogram:
    """Values in ranges that end at `bounds`, and one more range without an end."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.sum = 0.0
        self._counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """A value that equals a bound belongs to the range below it."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> tuple[int, ...]:
        """For each bound, and for infinity, how many values were not larger."""
        total, found = 0, []
        for count in self._counts:
            total += count
            found.append(total)
        return tuple(found)

    def copy(self) -> Histogram:
        """The numbers of this moment."""
        other = Histogram(self.bounds)
        other.sum, other._counts = self.sum, list(self._counts)
        return other
