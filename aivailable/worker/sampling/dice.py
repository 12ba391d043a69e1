"""Random numbers that are functions of (seed, position): a continuation rolls the same ones.

Owns: the key. Pure; used by sampler.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

from aivailable.wire.generation import Sampling

DRAW: Final = 0
"""Purpose of the roll that picks the token."""
XTC: Final = 1
REDRAW: Final = 2
"""Picks again, after the grammar has refused the first token."""
_UNIFORM_SCALE: Final = 2.0**-64


def seed_of(sampling: Sampling, request_id: str) -> int:
    """The request's seed; without one, a seed that every worker derives from the request id."""
    if sampling.seed is not None:
        return sampling.seed
    return int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=7).digest(), "big")


def uniform(seed: int, position: int, purpose: int = DRAW) -> float:
    """A number in [0, 1) that depends on its arguments alone."""
    key = struct.pack(">qqB", seed, position, purpose)
    (number,) = struct.unpack(">Q", hashlib.blake2b(key, digest_size=8).digest())
    return min(float(number) * _UNIFORM_SCALE, 1.0 - 2.0**-53)
