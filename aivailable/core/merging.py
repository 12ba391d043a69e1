"""When clusters end in others: who still finds the way, and a cluster founded anew from a copy.

Owns the rules around tombstones, and what stays of a state when its majority is gone for good.
Called by core.changes_* (who may come in) and by peer.recovery.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from aivailable.core.ids import ClusterId, NodeId
from aivailable.core.records import Event, JoinWindow, Role, Tombstone
from aivailable.core.state import EVENTS_MAX, State

TOMBSTONES_MAX = 8
"""Ended clusters remembered; the oldest that awaits nobody goes first."""


def listing(state: State, node: NodeId, cluster: ClusterId = "") -> Tombstone | None:
    """The tombstone that lets this node in with no window: of `cluster`, or of any."""
    for tombstone in state.tombstones:
        if node in tombstone.awaited and cluster in ("", tombstone.cluster_id):
            return tombstone
    return None


def without_awaited(tombstones: Sequence[Tombstone], node: NodeId) -> tuple[Tombstone, ...]:
    """The node has come, by whatever door. Struck off for good: were it removed later, no
    tombstone would let it in again."""
    return tuple(
        replace(entry, awaited=tuple(other for other in entry.awaited if other != node))
        for entry in tombstones
    )


def with_tombstone(
    tombstones: Sequence[Tombstone], fresh: Tombstone
) -> tuple[Tombstone, ...] | None:
    """Added, or in the place of an earlier one of the same cluster. None when all TOMBSTONES_MAX
    still await somebody who would otherwise find no way in."""
    kept = [entry for entry in tombstones if entry.cluster_id != fresh.cluster_id]
    while len(kept) >= TOMBSTONES_MAX:
        done = [entry for entry in kept if not entry.awaited]
        if not done:
            return None
        kept.remove(done[0])
    return (*kept, fresh)


@dataclass(frozen=True, slots=True)
class Recovered:
    """A state to found anew from, and what is given up with the old cluster."""

    state: State
    gone: tuple[str, ...]
    """Names of the members that are no members any more, sorted by id."""
    lost_models: tuple[str, ...]
    """Catalogue entries whose only verified copies were on them."""


def recovered(
    state: State, node: NodeId, cluster_id: ClusterId, *, actor: str, at_ms: int
) -> Recovered:
    """The cluster of one that `node` founds from its copy of the state.

    Keys, models, deployments, settings and history stay; the others' membership, claims, copies
    and devices end. A tombstone lists them: whoever was not gone after all is let in again.
    Raises ValueError when the copy holds no cluster with this node as member.
    """
    own = state.members.get(node)
    if own is None or state.cluster is None:
        raise ValueError("this node's copy holds no cluster that it is a member of")
    others = tuple(sorted(other for other in state.members if other != node))
    copies = {digest: (node,) for digest, nodes in sorted(state.copies.items()) if node in nodes}
    grave = Tombstone(state.cluster.cluster_id, state.cluster.name, others, merged=False)
    graves = with_tombstone(state.tombstones, grave) or (*state.tombstones[1:], grave)
    after = replace(
        state,
        version=state.version + 1,
        cluster=replace(state.cluster, cluster_id=cluster_id, founded_by=node, founded_at_ms=at_ms),
        control=None,
        window=JoinWindow(serial=state.window.serial + 1),
        members={node: replace(own, role=Role.VOTER, down=False, away=False)},
        inventories={key: value for key, value in state.inventories.items() if key == node},
        copies=copies,
        replicas={key: entry for key, entry in state.replicas.items() if entry.node == node},
        failures={key: entry for key, entry in state.failures.items() if entry.node == node},
        outcomes={key: table for key, table in state.outcomes.items() if key == node},
        tombstones=graves,
        operator_touched=True,
    )
    gone = tuple(state.members[other].name for other in others)
    lost = tuple(model.name for key, model in sorted(state.models.items()) if key not in copies)
    text = f"{own.name} founded the cluster anew from its copy; given up: "
    text += ", ".join(gone) or "nobody"
    event = Event(
        after.version, "recovered", node, actor, "the majority is gone for good", at_ms, text
    )
    return Recovered(replace(after, events=(*state.events, event)[-EVENTS_MAX:]), gone, lost)
