"""Mirostat 1 and 2 (arXiv 2007.14966): keep the surprise of the text near tau.

Owns: mu, and how it cuts the candidates. Pure.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from aivailable.wire.generation import Sampling
from aivailable.worker.engine import Logits
from aivailable.worker.sampling.candidates import Candidates, above, largest

ESTIMATE_TOKENS: Final = 100
"""Version 1 estimates the distribution's exponent from this many best tokens (llama.cpp's m)."""


class Mirostat:
    """llama.cpp `llama_sampler_mirostat` and `llama_sampler_mirostat_v2`."""

    def __init__(self, sampling: Sampling) -> None:
        self._version = sampling.mirostat
        self._tau, self._eta = sampling.mirostat_tau, sampling.mirostat_eta
        self._temperature = sampling.temperature
        self.mu = 2.0 * self._tau

    def select(self, row: Logits, scratch: Logits) -> Candidates:
        """The candidates, their logits divided by the temperature."""
        if self._version == 1:
            return self._select_by_rank(row)
        # Surprise over mu is a floor of the logit: no sort is needed to find it.
        best = float(row.max())
        np.subtract(row, np.float32(best), out=scratch)
        np.divide(scratch, np.float32(self._temperature), out=scratch)
        np.exp(scratch, out=scratch)
        total = float(scratch.sum(dtype=np.float64))
        floor = best + self._temperature * (math.log(total) - self.mu * math.log(2.0))
        return self._scaled(above(row, floor))

    def learn(self, found: Candidates, token: int) -> None:
        """The token was taken from these candidates: move mu by the error of its surprise."""
        weights = found.weights()
        at = np.flatnonzero(found.ids == token)
        # A replayed token may have fallen out where other hardware computed it: the rarest then.
        weight = float(weights[at[0]]) if len(at) else float(weights[-1])
        surprise = -math.log2(max(weight / float(weights.sum()), 1e-30))
        self.mu -= self._eta * (surprise - self._tau)

    def _select_by_rank(self, row: Logits) -> Candidates:
        size = row.shape[0]
        best = self._scaled(largest(row, min(ESTIMATE_TOKENS, size)))
        drops = best.logits[:-1] - best.logits[1:]
        if not len(drops):
            return best
        ranks = np.arange(1, len(drops) + 1, dtype=np.float64)
        steps = np.log((ranks + 1.0) / ranks)
        exponent = float((steps * drops).sum() / (steps * steps).sum())
        epsilon = exponent - 1.0
        if exponent <= 0.0 or epsilon == 0.0:
            return self._scaled(largest(row, size))
        ratio = epsilon * 2.0**self.mu / (1.0 - float(size) ** -epsilon)
        count = max(1, int(min(float(size), ratio ** (1.0 / exponent)))) if ratio > 0.0 else 1
        return self._scaled(largest(row, count))

    def _scaled(self, found: Candidates) -> Candidates:
        return Candidates(found.ids, found.logits / self._temperature)
