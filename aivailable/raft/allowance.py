"""How much a member may put into the log through the leader.

Owns the count for each member, in commands and in bytes: what it has not used lately it may use at
once, up to a limit. Beyond it the command is dropped, and whoever waits for it offers it again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aivailable.core.ids import NodeId
from aivailable.wire.limits import KIB, MIB

COMMANDS_PER_S = 50.0
"""On and on. A busy member of a large cluster makes a few a second ..."""
COMMANDS_AT_ONCE = 500.0
"""... and many at a time when it brings a cluster's keys and models into another."""
BYTES_PER_S = 16.0 * KIB
"""On and on: 1 MiB a minute ..."""
BYTES_AT_ONCE = 2.0 * MIB
"""... and all that a state may hold at a time."""


@dataclass(slots=True)
class _Left:
    commands: float
    bytes: float
    at_s: float


class Allowance:
    """Of all members, kept by one leader."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left: dict[NodeId, _Left] = {}

    def take(self, node: NodeId, size_bytes: int) -> bool:
        """Count a command of this member; False: it has had its share for now."""
        now_s = self._clock()
        left = self._left.setdefault(node, _Left(COMMANDS_AT_ONCE, BYTES_AT_ONCE, now_s))
        idle_s = now_s - left.at_s
        left.at_s = now_s
        left.commands = min(COMMANDS_AT_ONCE, left.commands + idle_s * COMMANDS_PER_S)
        left.bytes = min(BYTES_AT_ONCE, left.bytes + idle_s * BYTES_PER_S)
        if left.commands < 1.0 or left.bytes < size_bytes:
            return False
        left.commands -= 1.0
        left.bytes -= size_bytes
        return True
