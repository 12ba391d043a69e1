"""Figures that a Raft node is built with: names, units and defaults. Given to RaftNode by peer.

Not to be confused with `core.state.settings`, the cluster's settings, which an operator changes.
"""

from __future__ import annotations

from dataclasses import dataclass

from aivailable.wire.limits import KIB, MIB


@dataclass(frozen=True, slots=True)
class RaftSettings:
    """Timers in seconds, sizes in entries and bytes. On Wi-Fi: elections of 1 to 2 s."""

    heartbeat_s: float = 0.1
    election_min_s: float = 0.5
    election_max_s: float = 1.0
    leader_fallback_s: float = 1.0
    """A leader that hears no majority for so long steps down."""
    tick_s: float = 0.05
    """The longest time between two ticks; messages and commands tick at once."""
    retry_s: float = 0.3
    """A submission that is not applied by then is sent again, the same bytes."""
    compact_entries: int = 2_000
    """The log is compacted beyond so many entries ..."""
    compact_bytes: int = 4 * MIB
    """... or bytes of commands, twice what a snapshot may have ..."""
    compact_s: float = 600.0
    """... or so long after the last time."""
    caught_up_entries: int = 16
    """A node whose log ends at most so far behind the leader's counts as caught up."""
    batch_bytes: int = 128 * KIB
    """One AppendEntries; four times COMMAND_MAX_BYTES, so that no entry is ever cut up (D14)."""
