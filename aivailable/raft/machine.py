"""The ports of the replicated log: what is replicated, and what carries messages.

Owns two protocols and nothing else. `Machine` is implemented above (the replicated state), `Link`
by peer over its connections, both by small fakes in tests.

Not to be confused with `core.state.machine`, which applies commands.
"""

from __future__ import annotations

from typing import Protocol

from aivailable.core.ids import NodeId


class Machine(Protocol):
    """A deterministic state machine. Total: none of its methods raises, but for CodeTooOld: then
    the state is as before, and neither this entry nor a later one may be applied by this code."""

    def apply(self, payload: bytes) -> None:
        """The next committed payload, in log order; the same on every node."""

    def snapshot(self) -> bytes:
        """The whole state, at most wire.limits.STATE_MAX_BYTES."""

    def restore(self, data: bytes) -> None:
        """Replace the state by what `snapshot` returned, here or on another node."""


class Link(Protocol):
    """Carries bytes to linked members, in order, without ever blocking."""

    def send(self, node: NodeId, data: bytes) -> bool:
        """Queue `data` (at most CONTROL_MESSAGE_MAX_BYTES). False: not connected, or full."""

    def connected(self, node: NodeId) -> bool:
        """Whether a link to this member is up now."""
