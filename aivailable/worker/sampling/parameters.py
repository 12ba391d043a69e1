"""Which sampling parameters are accepted.

Owns: their ranges. Pure. It is asked before a request gets anywhere.

Not to be confused with `worker.llama.parameters`, the sizes that llama.cpp is given at load.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Final

from aivailable.errors import RequestError
from aivailable.wire.generation import Sampling

BIASES_MAX: Final = 1024
BREAKERS_MAX: Final = 16
BREAKER_MAX_CHARS: Final = 40
LENGTH_MAX: Final = 1 << 20
_RANGES: Final[dict[str, tuple[float, float]]] = {
    "temperature": (-math.inf, 1e4),
    "top_p": (-math.inf, math.inf),
    "min_p": (-math.inf, 1.0),
    "typical_p": (0.0, math.inf),
    "repeat_penalty": (1e-6, 1e6),
    "presence_penalty": (-1e4, 1e4),
    "frequency_penalty": (-1e4, 1e4),
    "dry_multiplier": (0.0, 1e4),
    "dry_base": (0.0, 1e4),
    "dry_allowed_length": (0, LENGTH_MAX),
    "dry_penalty_last_n": (-1, LENGTH_MAX),
    "repeat_last_n": (-1, LENGTH_MAX),
    "xtc_probability": (-math.inf, math.inf),
    "mirostat": (0, 2),
    "mirostat_tau": (0.0, 100.0),
    "mirostat_eta": (0.0, 1.0),
    "seed": (-(2**63), 2**63 - 1),
}


def check_sampling(sampling: Sampling, vocabulary: int) -> None:
    """Raises RequestError (400) with the name of the parameter and its range."""
    for field in fields(sampling):
        value = getattr(sampling, field.name)
        if not isinstance(value, (int, float)):
            continue
        low, high = _RANGES.get(field.name, (-math.inf, math.inf))
        # Not by math.isfinite alone: an integer may be too large for it.
        if value != value or value in (math.inf, -math.inf):
            raise _refusal(f"{field.name} must be a finite number")
        if not low <= value <= high:
            raise _refusal(f"{field.name} is {value}; {low} to {high} are possible")
    _check_bias(sampling, vocabulary)
    breakers = sampling.dry_sequence_breakers
    if len(breakers) > BREAKERS_MAX or any(len(text) > BREAKER_MAX_CHARS for text in breakers):
        raise _refusal(
            f"dry_sequence_breakers: at most {BREAKERS_MAX} of {BREAKER_MAX_CHARS} characters"
        )


def _check_bias(sampling: Sampling, vocabulary: int) -> None:
    bias = sampling.logit_bias
    if len(bias) > BIASES_MAX:
        raise _refusal(f"logit_bias has {len(bias)} entries; {BIASES_MAX} are possible")
    for token, value in bias.items():
        known = token.isascii() and token.isdecimal() and len(token) < 10
        if not known or int(token) >= vocabulary:
            raise _refusal(f"logit_bias: {token[:20]!r} is no token; ids are 0 to {vocabulary - 1}")
        if not math.isfinite(value):
            raise _refusal(f"logit_bias of {token} must be a finite number")


def _refusal(message: str) -> RequestError:
    return RequestError(400, "invalid_request", message)
