"""Logits to a token: penalties, top-k, top-p, min-p, temperature, then one keyed draw.

Owns: the arithmetic. Pure (numpy only); used by job. The order is llama.cpp's default chain
(`common/sampling.cpp`: penalties, top_k, top_p, min_p, temperature).

The draw of the n-th token depends on (seed, n) and the logits alone, never on a generator's
state: a continuation elsewhere draws what this worker would have drawn.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from aivailable.wire.generation import Sampling
from aivailable.worker.engine import Logits

REPEAT_WINDOW_TOKENS: Final = 64
"""`repeat_penalty` looks at so many last tokens, the prompt's included (llama.cpp's default)."""
_UNIFORM_SCALE: Final = 2.0**-64


def seed_of(sampling: Sampling, request_id: str) -> int:
    """The request's seed; without one, a seed that every worker derives from the request id."""
    if sampling.seed is not None:
        return sampling.seed
    return int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=7).digest(), "big")


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on its arguments alone."""
    key = struct.pack(">qq", seed, position)
    (number,) = struct.unpack(">Q", hashlib.blake2b(key, digest_size=8).digest())
    return min(float(number) * _UNIFORM_SCALE, 1.0 - 2.0**-53)


def draw(
    logits: Logits,
    sampling: Sampling,
    *,
    seed: int,
    position: int,
    recent: Sequence[int],
    counts: Mapping[int, int],
) -> int:
    """The next token.

    `position`: how many tokens of the answer there are already. `recent`: the last tokens of
    prompt and answer. `counts`: how often each token occurs in the answer. Logits are not changed.
    """
    logits = penalized(logits, sampling, recent, counts)
    if sampling.temperature <= 0.0:
        return int(logits.argmax())
    tokens, probabilities = distribution(logits, sampling)
    cumulative = np.cumsum(probabilities)
    at = np.searchsorted(cumulative, uniform(seed, position) * cumulative[-1], side="right")
    return int(tokens[min(int(at), len(tokens) - 1)])


def penalized(
    logits: Logits, sampling: Sampling, recent: Sequence[int], counts: Mapping[int, int]
) -> Logits:
    """Logits after the penalties: repeat (CTRL, arXiv 1909.05858), frequency and presence
    (OpenAI's definition, over the answer). The same array when none is set."""
    repeat = sampling.repeat_penalty
    present, frequent = sampling.presence_penalty, sampling.frequency_penalty
    if repeat == 1.0 and present == 0.0 and frequent == 0.0:
        return logits
    changed = logits.copy()
    if repeat != 1.0 and recent:
        seen = np.array(sorted(set(recent[-REPEAT_WINDOW_TOKENS:])), dtype=np.int64)
        values = changed[seen]
        changed[seen] = np.where(values > 0, values / repeat, values * repeat)
    if counts and (present != 0.0 or frequent != 0.0):
        seen = np.fromiter(counts.keys(), dtype=np.int64, count=len(counts))
        often = np.fromiter(counts.values(), dtype=np.float32, count=len(counts))
        changed[seen] -= present + frequent * often
    return changed


def distribution(
    logits: Logits, sampling: Sampling
) -> tuple[
    np.ndarray[tuple[int], np.dtype[np.int64]], np.ndarray[tuple[int], np.dtype[np.float64]]
]:
    """The tokens that may be drawn, most probable first, and their weights (not normalized).

    Equal logits are ordered by token id, so that the answer never depends on the sort.
    """
    size = logits.shape[0]
    if 0 < sampling.top_k < size:
        # A partition is linear; the full sort of a 150k vocabulary is what makes sampling slow.
        floor = np.partition(logits, size - sampling.top_k)[size - sampling.top_k]
        candidates = np.flatnonzero(logits >= floor)
    else:
        candidates = np.arange(size)
    values = logits[candidates].astype(np.float64)
    order = np.lexsort((candidates, -values))
    if sampling.top_k > 0:
        order = order[: sampling.top_k]
    candidates, values = candidates[order].astype(np.int64), values[order]
    weights = np.exp(values - values[0])
    keep = len(weights)
    if sampling.top_p < 1.0:
        mass = np.cumsum(weights)
        keep = int(np.searchsorted(mass, sampling.top_p * mass[-1], side="left")) + 1
    if sampling.min_p > 0.0:
        keep = min(keep, int(np.count_nonzero(weights >= sampling.min_p)))
    keep = max(1, min(keep, len(weights)))
    candidates, values = candidates[:keep], values[:keep]
    return candidates, np.exp((values - values[0]) / sampling.temperature)
