"""The cluster as the parts of a session read it: this node's newest picture of it.

Owns only the interface; `peer.session` implements it. Read anew at each use: nothing keeps what it
has read over an `await`.
"""

from __future__ import annotations

from typing import Protocol

from aivailable.core.cluster.liveness import Liveness
from aivailable.core.ids import NodeId
from aivailable.core.state.state import State


class ClusterView(Protocol):
    """What was decided (`state`), and what is heard just now (`liveness`)."""

    @property
    def node(self) -> NodeId:
        """Who looks."""
        ...

    @property
    def state(self) -> State:
        """The replicated state as far as it is applied here."""
        ...

    def liveness(self) -> Liveness:
        """Who is heard and linked, and with what load: a picture of this moment."""
        ...

    def leaderless_ms(self) -> int:
        """How long no leader has been known; 0 while there is one."""
        ...
