"""Log probabilities of the drawn token and of the best alternatives.

Owns: log-softmax over the model's raw logits, before bias, penalties and temperature (what OpenAI's
`logprobs` report). Computed only when asked for. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from aivailable.wire.generation import Alternative, TokenLogprob
from aivailable.worker.engine import Logits
from aivailable.worker.sampling.candidates import largest

ALTERNATIVES_MAX: Final = 20
LOGPROB_MIN: Final = -9999.0
"""Stands for -inf, which JSON does not have (OpenAI's convention)."""


def logprob(
    row: Logits, token: int, alternatives: int, piece: Callable[[int], bytes], scratch: Logits
) -> TokenLogprob:
    """Natural logarithms; `alternatives`: how many of the most probable tokens to report."""
    best = float(row.max())
    np.subtract(row, np.float32(best), out=scratch)
    np.exp(scratch, out=scratch)
    total = best + math.log(float(scratch.sum(dtype=np.float64)))

    def told(which: int, logit: float) -> Alternative:
        return Alternative(which, max(logit - total, LOGPROB_MIN), piece(which))

    top: tuple[Alternative, ...] = ()
    if alternatives > 0:
        found = largest(row, min(alternatives, row.shape[0]))
        pairs = zip(found.ids.tolist(), found.logits.tolist(), strict=True)
        top = tuple(told(which, logit) for which, logit in pairs)
    return TokenLogprob(told(token, float(row[token])), top)
