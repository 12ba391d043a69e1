"""Random numbers that are functions of (seed, position): a continuation rolls the same ones.

Owns: the key. Pure; used by sampler.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

import numpy as np
import numpy.typing as npt

from aivailable.wire.generation import Sampling

DRAW: Final = 0
"""Purpose of the roll that picks the token."""
XTC: Final = 1
REDRAW: Final = 2
"""Picks again, after the grammar has refused the first token."""
_UNIFORM_SCALE: Final = 2.0**-64
# Constants of splitmix64 (Steele, Lea and Flood 2014).
_MIX: Final = np.array([0x9E3779B97F4A7C15], np.uint64)
_ROUNDS: Final = (
    (np.uint64(30), np.array([0xBF58476D1CE4E5B9], np.uint64)),
    (np.uint64(27), np.array([0x94D049BB133111EB], np.uint64)),
)
_LAST_SHIFT: Final = np.uint64(31)
_TO_53_BITS: Final = np.uint64(11)


def seed_of(sampling: Sampling, request_id: str) -> int:
    """The request's seed; without one, a seed that every worker derives from the request id."""
    if sampling.seed is not None:
        return sampling.seed
    return int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=7).digest(), "big")


def uniform(seed: int, position: int, purpose: int = DRAW) -> float:
    """A number in [0, 1) that depends on its arguments alone."""
    return min(float(_number(seed, position, purpose)) * _UNIFORM_SCALE, 1.0 - 2.0**-53)


def gumbels(
    seed: int, position: int, purpose: int, ids: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """A number of the standard Gumbel distribution for every token id. The token with the largest
    logit + number follows the softmax of the logits (the Gumbel-max trick), and logits that differ
    in their last digits give another one hardly ever: far more seldom than a walk along cumulative
    probabilities, where every border moves."""
    key = np.array([_number(seed, position, purpose)], np.uint64)
    mixed = ids.astype(np.uint64) * _MIX[0] + key
    for shift, factor in _ROUNDS:
        mixed = (mixed ^ (mixed >> shift)) * factor
    mixed ^= mixed >> _LAST_SHIFT
    uniform_numbers = (mixed >> _TO_53_BITS).astype(np.float64) * 2.0**-53 + 2.0**-54
    numbers: npt.NDArray[np.float64] = -np.log(-np.log(uniform_numbers))
    return numbers


def _number(seed: int, position: int, purpose: int) -> int:
    key = struct.pack(">qqB", seed, position, purpose)
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
