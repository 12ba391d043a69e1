"""How much prefill one step may carry, so that running streams hardly feel a long prompt.

Owns: that number, learned from the times of the steps before. Pure: step_loop measures. A short
prompt is let through at once (batcher), because its client waits for the first token.

Model: a step costs what its decode rows cost and so much for each prefill token beside them. Both
are moving averages; the rows' cost is kept per number of rows.
"""

from __future__ import annotations

from typing import Final

STALL_MAX: Final = 1.7
"""A step with prefill may take so many times the step without; the issue's bound is 2."""
WEIGHT: Final = 0.2
"""Of the newest measurement in an average."""
UNKNOWN_TOKENS: Final = 4
"""Prefill tokens beside rows until something was measured."""


class Pace:
    """`most`: prefill tokens of a step without rows; `least`: what every step may carry."""

    def __init__(self, most: int, least: int) -> None:
        self._most, self._least = most, min(least, most)
        self._rows_s: dict[int, float] = {}
        self._token_s = 0.0

    def observe(self, rows: int, prefill: int, elapsed_s: float) -> None:
        """A step of so many decode rows and prefill tokens took `elapsed_s`."""
        if prefill == 0:
            self._rows_s[rows] = _average(self._rows_s.get(rows, 0.0), elapsed_s)
            return
        own_s = elapsed_s - self._cost_of(rows)
        if own_s > 0.0:
            self._token_s = _average(self._token_s, own_s / prefill)

    def budget(self, rows: int) -> int:
        """Prefill tokens that may go beside so many rows."""
        if rows == 0:
            return self._most
        rows_s = self._cost_of(rows)
        if rows_s <= 0.0 or self._token_s <= 0.0:
            return max(self._least, min(self._most, UNKNOWN_TOKENS))
        tokens = int((STALL_MAX - 1.0) * rows_s / self._token_s)
        return max(self._least, min(self._most, tokens))

    def _cost_of(self, rows: int) -> float:
        """The average of so many rows, else of the nearest number of rows known."""
        if rows == 0 or not self._rows_s:
            return 0.0
        nearest = min(self._rows_s, key=lambda known: (abs(known - rows), known))
        return self._rows_s[nearest]


def _average(before: float, now: float) -> float:
    return now if before <= 0.0 else (1.0 - WEIGHT) * before + WEIGHT * now
