"""How far slots may grow, and what one unit more may cost at most between two measured sizes.

Owns those bounds and the arithmetic of lines above a curve, for `peer.deploying.deploying`. Must
not measure anything.
"""

from __future__ import annotations

from collections.abc import Sequence

SLOTS_AUTO_MAX = 64
CELLS_AUTO_MAX = 8 << 20
CONTEXT_AUTO_MAX = 1 << 20
"""Automatic sizes reach no further than what a worker loads (`worker.loading.check_sizes`)."""


def most_slots(asked: int, context: int) -> int:
    """The most automatic slots of this many tokens each; 0 `asked` = as many as there may be."""
    return min(asked or SLOTS_AUTO_MAX, SLOTS_AUTO_MAX, CELLS_AUTO_MAX // context)


def most_context(slots: int) -> int:
    """The longest automatic context, in tokens, of this many slots."""
    return min(CONTEXT_AUTO_MAX, CELLS_AUTO_MAX // slots)


def divided_up(count: int, parts: int) -> int:
    """Divided, rounded up."""
    return -(-count // parts)


def steepest(total: int, curve: Sequence[int]) -> int:
    """Bytes a step of a line from the first point that is nowhere below a curve of this shape
    whose ends are `total` bytes apart."""
    total, span = max(0, total), curve[-1] - curve[0]
    found = [divided_up(total, len(curve) - 1)]
    for count, size in enumerate(curve[1:], 1):
        more = max(0, size - curve[0])
        whole = divided_up(more * total, span * count) if span > 0 else divided_up(more, count)
        found.append(whole)
    return max(found)
