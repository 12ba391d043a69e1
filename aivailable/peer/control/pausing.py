"""`aivailable pause`: the machine's owner wants it for a while.

Owns the time that is left, on this node's monotonic clock. What runs here drains
(`peer.serving.agent` does so at once, also without a leader), and nothing new comes: the heartbeat
says so, and `core.planning.planner` places it elsewhere. It does not outlive the process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from aivailable.core.ids import NodeId, short
from aivailable.core.serving.status import PauseStatus
from aivailable.core.state.node_names import shown_name
from aivailable.errors import AivailableError, RequestError
from aivailable.peer.control.cluster_view import ClusterView
from aivailable.peer.control.rpc import Rpc
from aivailable.peer.ports import Clock

PAUSE_MAX_S = 7 * 24 * 3600


class OwnerPause:
    """`on_change` is called when it begins or is ended by hand."""

    def __init__(self, clock: Clock, on_change: Callable[[], None]) -> None:
        self._clock = clock
        self._on_change = on_change
        self._until_s = clock.monotonic()

    def set(self, duration_s: int) -> None:
        """From now on for this long; 0 ends it. Raises AivailableError for any other length."""
        if not 0 <= duration_s <= PAUSE_MAX_S:
            raise AivailableError(f"a pause lasts 0 to {PAUSE_MAX_S} s")
        self._until_s = self._clock.monotonic() + duration_s
        self._on_change()

    def left_s(self) -> int:
        """Whole seconds, rounded up; 0 = this node serves."""
        return max(0, math.ceil(round(self._until_s - self._clock.monotonic(), 3)))

    async def called(self, _node: NodeId, arguments: Mapping[str, str]) -> Mapping[str, str]:
        """Another member passes on what an administrator asked there."""
        text = arguments.get("duration_s", "")
        if not text.isdecimal() or len(text) > len(str(PAUSE_MAX_S)):
            raise AivailableError("a pause needs its length in seconds")
        self.set(int(text))
        return {}


async def pause_node(
    node: NodeId, duration_s: int, *, cluster: ClusterView, pause: OwnerPause, rpc: Rpc
) -> PauseStatus:
    """Pause this node or ask another member to. Raises RequestError 404, 503 `unreachable`."""
    state = cluster.state
    if node not in state.members:
        raise RequestError(404, "unknown_node", f"{short(node)} is not a member")
    name = shown_name(state.members, node)
    try:
        if node == cluster.node:
            pause.set(duration_s)
        else:
            await rpc.ask(node, "pause", {"duration_s": str(duration_s)})
    except AivailableError as error:
        raise RequestError(503, "unreachable", f"{name} was not told: {error}") from error
    ending = tuple(entry.replica for entry in state.replicas_on(node)) if duration_s else ()
    return PauseStatus(node, name, duration_s, ending)
