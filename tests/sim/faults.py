"""What the simulated network does to packets at this moment: cuts, loss, latency.

Owns the current damage and nothing else; the schedule in sim.schedule changes it, sim.network
asks it. Directions are (from, to) pairs of node names.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

LATENCY_MIN_S = 0.0002
LATENCY_MAX_S = 0.005
SLOW_SHARE = 0.01
"""Packets that take up to SLOW_MAX_S: a busy host, a Wi-Fi retry."""
SLOW_MAX_S = 0.15


class Damage:
    """Which directions are cut and how many messages get lost."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._cut: dict[tuple[str, str], float] = {}
        self.loss = 0.0
        """Probability that a message of the control class vanishes."""

    def cut(self, source: str, target: str, now_s: float) -> None:
        """Nothing gets from `source` to `target` until it is mended."""
        self._cut.setdefault((source, target), now_s)

    def mend(self, pairs: Iterable[tuple[str, str]]) -> None:
        for pair in pairs:
            self._cut.pop(pair, None)

    @property
    def calm(self) -> bool:
        """Nothing is cut and nothing gets lost."""
        return not self._cut and self.loss == 0

    def heal(self) -> None:
        """Everything works again."""
        self._cut.clear()
        self.loss = 0.0

    def is_cut(self, source: str, target: str) -> bool:
        return (source, target) in self._cut

    def connects(self, one: str, other: str) -> bool:
        """Both directions pass: a new connection can be made."""
        return not self.is_cut(one, other) and not self.is_cut(other, one)

    def loses(self) -> bool:
        return self.loss > 0 and self._rng.random() < self.loss

    def latency_s(self) -> float:
        if self._rng.random() < SLOW_SHARE:
            return self._rng.uniform(LATENCY_MAX_S, SLOW_MAX_S)
        return self._rng.uniform(LATENCY_MIN_S, LATENCY_MAX_S)
