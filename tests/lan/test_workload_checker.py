"""The checker of registers itself: good histories pass, and each kind of bad one is found."""

from __future__ import annotations

import random

import pytest
from lan.workload_checker import NEVER, Operation, linearizable


def write(begun_s: float, ended_s: float, value: str) -> Operation:
    return Operation(begun_s, ended_s, "write", value)


def read(begun_s: float, ended_s: float, value: str) -> Operation:
    return Operation(begun_s, ended_s, "read", value)


GOOD = {
    "nothing": [],
    "in turn": [write(0, 1, "a"), read(2, 3, "a"), write(4, 5, "b"), read(6, 7, "b")],
    "a read beside a write sees the old value": [write(0, 9, "a"), read(1, 2, "")],
    "or the new one": [write(0, 9, "a"), read(1, 2, "a"), read(3, 4, "a")],
    "two writes at once, in either order": [
        write(0, 5, "a"), write(0, 5, "b"), read(6, 7, "a"), read(8, 9, "a"),
    ],
    "a lost write never takes effect": [write(0, NEVER, "a"), read(1, 2, ""), read(8, 9, "")],
    "or late": [write(0, NEVER, "a"), read(1, 2, ""), read(8, 9, "a")],
    "or late, over a later one": [
        write(0, NEVER, "a"), write(1, 2, "b"), read(3, 4, "b"), read(5, 6, "a"),
    ],
    "a read without an answer says nothing": [write(0, 1, "a"), read(2, NEVER, "z")],
}  # fmt: skip

BAD = {
    "an acknowledged write is lost": [write(0, 1, "a"), read(2, 3, "")],
    "it is lost to an older one": [write(0, 1, "a"), write(2, 3, "b"), read(4, 5, "a")],
    "a value nobody wrote": [write(0, 1, "a"), read(2, 3, "x")],
    "a value before it was written": [read(0, 1, "a"), write(2, 3, "a")],
    "a stale read": [write(0, 1, "a"), write(2, 3, "b"), read(4, 5, "b"), read(6, 7, "a")],
    "back and forth beside a write": [
        write(0, 1, "a"), write(2, 9, "b"), read(3, 4, "b"), read(5, 6, "a"),
    ],
    "two readers see two orders": [
        write(0, 5, "a"), write(0, 5, "b"),
        read(6, 7, "a"), read(8, 9, "b"),
    ],
    "an unknown write takes effect twice": [
        write(0, NEVER, "a"), read(1, 2, "a"), write(3, 4, "b"), read(5, 6, "b"), read(7, 8, "a"),
    ],
    "an unknown write before it began": [read(0, 1, "a"), write(2, NEVER, "a")],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_good_history_passes(name: str) -> None:
    assert linearizable(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_a_bad_history_is_found(name: str) -> None:
    assert not linearizable(BAD[name])


def long_history(seed: int, count: int = 300) -> list[Operation]:
    """What a real register shows to six clients, some of whose writes get no answer."""
    rng = random.Random(seed)
    begun = sorted(rng.uniform(0, count / 6) for _ in range(count))
    plans = sorted((begun_s + rng.uniform(0, 0.5), begun_s, n) for n, begun_s in enumerate(begun))
    value, history = "", []
    for instant_s, begun_s, number in plans:
        ended_s = instant_s + rng.uniform(0, 0.5)
        if rng.random() < 0.5:
            lost = rng.random() < 0.15
            if not (lost and rng.random() < 0.5):
                value = f"v{number}"
            history.append(write(begun_s, NEVER if lost else ended_s, f"v{number}"))
        else:
            history.append(read(begun_s, ended_s, value))
    return history


@pytest.mark.parametrize("seed", range(5))
def test_long_histories_are_judged_in_time(seed: int) -> None:
    history = long_history(seed)
    assert linearizable(history)
    last = max(one.ended_s for one in history if one.ended_s < NEVER)
    old = next(one.value for one in sorted(history) if one.kind == "write" and one.ended_s < NEVER)
    assert not linearizable([*history, read(last + 1, last + 2, old)])
