"""What happened in a simulated run, line by line, and its fingerprint.

Owns the lines. They name only virtual times, node names and values that follow from the seed, so
that equal seeds give equal lines in every process. Written to by everything in `sim`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

LINES_MAX = 400_000
"""A run that writes more has gone wild; it fails instead of filling the memory."""


class Trace:
    """Lines `seconds who what`; `digest` is SHA-256 over all of them."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._hash = hashlib.sha256()
        self.lines: list[str] = []

    def add(self, who: str, what: str) -> None:
        """Raises RuntimeError beyond LINES_MAX."""
        line = f"{self._now():.6f} {who} {what}"
        if len(self.lines) >= LINES_MAX:
            raise RuntimeError(f"the trace has {LINES_MAX} lines: a run that never rests")
        self.lines.append(line)
        self._hash.update(line.encode() + b"\n")

    def digest(self) -> str:
        return self._hash.hexdigest()


def first_difference(left: Sequence[str], right: Sequence[str]) -> str:
    """Where two traces part, in words; "" when they are equal."""
    for number, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return f"line {number}:\n  {one}\n  {other}"
    if len(left) != len(right):
        longer = left if len(left) > len(right) else right
        number = min(len(left), len(right))
        return f"line {number}: only one run goes on with\n  {longer[number]}"
    return ""
