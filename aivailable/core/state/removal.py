"""Nodes that were removed for good: who they are, and what they are told.

Every way in asks `removed_for_good`: an open window, a join key, a merge, a recovery. It is the
identity that stays out; its machine comes back with a new one.
"""

from __future__ import annotations

from typing import Final

from aivailable.advice import UP_NEW_IDENTITY
from aivailable.core.ids import NodeId, short
from aivailable.core.state.state import State

REMOVED_MAX: Final = 512
"""Removed nodes remembered; the oldest go first."""


def removed_for_good(state: State, node: NodeId) -> str:
    """Why this node is never let in again, and how its machine comes back; "" = it is not so."""
    if node not in state.removed:
        return ""
    return (
        f"{short(node)} was removed from this cluster for good: {UP_NEW_IDENTITY} on"
        " that machine makes it a new node, with its models kept"
    )


def with_removed(removed: tuple[NodeId, ...], nodes: tuple[NodeId, ...]) -> tuple[NodeId, ...]:
    """The list with these at its end."""
    return (*(node for node in removed if node not in nodes), *nodes)[-REMOVED_MAX:]
