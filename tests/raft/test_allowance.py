"""A member fills the log at the pace that is its own, and honest bursts pass."""

from __future__ import annotations

from aivailable.raft.allowance import (
    BYTES_AT_ONCE,
    BYTES_PER_S,
    COMMANDS_AT_ONCE,
    COMMANDS_PER_S,
    Allowance,
)


def test_a_burst_passes_and_then_the_pace_holds() -> None:
    now_s = 0.0
    allowance = Allowance(lambda: now_s)
    assert sum(allowance.take("n2", 10) for _ in range(10_000)) == COMMANDS_AT_ONCE
    now_s += 2.0
    assert sum(allowance.take("n2", 10) for _ in range(10_000)) == 2 * COMMANDS_PER_S
    assert allowance.take("n3", 10), "another's share is its own"


def test_bytes_count_as_well() -> None:
    now_s = 0.0
    allowance = Allowance(lambda: now_s)
    size_bytes = int(BYTES_AT_ONCE) // 10
    assert sum(allowance.take("n2", size_bytes) for _ in range(100)) == 10
    now_s += size_bytes / BYTES_PER_S
    assert sum(allowance.take("n2", size_bytes) for _ in range(100)) == 1
