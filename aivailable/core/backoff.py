"""How long to wait before the next try.

Owns one formula; draws no randomness itself.
"""

from __future__ import annotations

_DOUBLINGS_MAX = 32
"""Beyond this the cap has long decided; keeps the power small."""


def delay_s(attempt: int, *, base_s: float, cap_s: float, jitter: float) -> float:
    """Seconds before try `attempt` + 1, after `attempt` failures (1 = the first).

    Doubles from `base_s` up to `cap_s`, then takes off up to half of it by `jitter` in [0, 1), so
    that nodes that failed together do not come back together.
    Source: "equal jitter", M. Brooker, "Exponential Backoff And Jitter", AWS, 2015.
    """
    doublings = min(max(attempt - 1, 0), _DOUBLINGS_MAX)
    whole = min(cap_s, base_s * 2.0**doublings)
    return whole * (1.0 - jitter / 2.0)
