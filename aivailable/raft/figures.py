"""What one node's Raft counts of itself, for people who look for what is wrong.

Owns the numbers only: node, transport and proposals count; the peer shows them in /metrics.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class RaftTally:
    """Since the node's Raft was made. Each of these is a sign of trouble, and is logged or retried
    where it happens."""

    faults: int = 0
    """Ticks and messages that raised inside the library."""
    malformed: int = 0
    """Messages of members that could not be read, and were dropped."""
    unsent: int = 0
    """Messages that the link, or the queue in front of the disk, did not take."""
    not_of_voters: int = 0
    """Messages dropped because their sender does not vote, or their term is out of all reach."""
    unauthorized: int = 0
    """Commands that a member forwarded and may not propose, refused here as the leader."""
    over_allowance: int = 0
    """Commands that a member forwarded beyond its share, dropped here as the leader."""
