"""Is a register linearizable? A search in the manner of Wing and Gong, apart from the product.

Owns operations on registers as clients saw them, and the verdict. A write whose outcome nobody
knows may take effect at any time after it began, or never. Wing & Gong, "Testing and Verifying
Concurrent Objects", 1993; the memory of dead ends is Lowe's ("Testing for linearizability", 2017).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

NEVER = math.inf


@dataclass(frozen=True, order=True)
class Operation:
    """One write or read of one register; times are seconds of one clock."""

    begun_s: float
    ended_s: float
    """NEVER: no answer, or one that says nothing; the write may still take effect."""
    kind: str
    """write | read"""
    value: str


def linearizable(operations: Iterable[Operation], initial: str = "") -> bool:
    """Whether some order of the operations, each at an instant between its begin and its end,
    explains every read. Values of writes must differ from one another."""
    history = sorted(_relevant(list(operations)))
    must = [index for index, one in enumerate(history) if one.ended_s < NEVER]
    needed = sum(1 << index for index in must)
    seen: set[tuple[int, str]] = set()
    open_ends = [(0, initial)]
    while open_ends:
        done, value = open_ends.pop()
        if done & needed == needed:
            return True
        if (done, value) in seen:
            continue
        seen.add((done, value))
        for index in _next(history, done):
            one = history[index]
            if one.kind == "write":
                open_ends.append((done | 1 << index, one.value))
            elif one.value == value:
                open_ends.append((done | 1 << index, value))
    return False


def _relevant(history: list[Operation]) -> list[Operation]:
    """Reads without an answer say nothing. A write of unknown outcome that nobody read can be left
    out: no read follows it directly in any order, so any order that has it is good without it."""
    read = {one.value for one in history if one.kind == "read" and one.ended_s < NEVER}
    return [
        one for one in history if one.ended_s < NEVER or (one.kind == "write" and one.value in read)
    ]


def _next(history: list[Operation], done: int) -> list[int]:
    """Operations that may come next: begun before any other one left has ended."""
    found, earliest_end_s = [], NEVER
    for index in range((~done & (done + 1)).bit_length() - 1, len(history)):
        if done >> index & 1:
            continue
        one = history[index]
        if one.begun_s > earliest_end_s:
            break
        found.append(index)
        earliest_end_s = min(earliest_end_s, one.ended_s)
    return [index for index in found if history[index].begun_s <= earliest_end_s]
