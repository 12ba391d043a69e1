"""Random numbers that are functions of (seed, position): a continuation rolls the same ones.

Owns: the key. Pure.
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
_KEY: Final = struct.Struct(">qqB")
# Constants of splitmix64 (Steele, Lea and Flood 2014); arrays, because numpy takes them as they
# are: with few candidates its calls cost more than the numbers.
_MIX: Final = np.array(0x9E3779B97F4A7C15, np.uint64)
_ROUNDS: Final = (
    (np.array(30, np.uint64), np.array(0xBF58476D1CE4E5B9, np.uint64)),
    (np.array(27, np.uint64), np.array(0x94D049BB133111EB, np.uint64)),
)
_LAST_SHIFT: Final = np.array(31, np.uint64)
_TO_53_BITS: Final = np.array(11, np.uint64)
_SCALE_53: Final = np.array(2.0**-53)
_HALF_54: Final = np.array(2.0**-54)


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
    mixed = np.multiply(ids.view(np.uint64), _MIX)
    mixed += np.array(_number(seed, position, purpose), np.uint64)
    shifted = np.empty_like(mixed)
    for shift, factor in _ROUNDS:
        mixed ^= np.right_shift(mixed, shift, out=shifted)
        mixed *= factor
    mixed ^= np.right_shift(mixed, _LAST_SHIFT, out=shifted)
    mixed >>= _TO_53_BITS
    numbers: npt.NDArray[np.float64] = mixed.astype(np.float64)
    numbers *= _SCALE_53
    numbers += _HALF_54
    for _ in range(2):
        np.log(numbers, out=numbers)
        np.negative(numbers, out=numbers)
    return numbers


def _number(seed: int, position: int, purpose: int) -> int:
    key = _KEY.pack(seed, position, purpose)
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
