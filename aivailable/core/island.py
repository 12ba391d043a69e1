"""Island replicas: what a node loads by itself while the log cannot change.

Owns which islands this node runs, when they drain, and which of them it offers to the log. They
live in the node's own ledger, never in the replicated state: `peer.agent` adds them to what is
placed here and keeps their reports to itself. Loss of quorum freezes changes, never serving.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from aivailable.core.commands import AdoptReplica
from aivailable.core.ids import NodeId, ReplicaId, island_id
from aivailable.core.liveness import Liveness, fresh_heartbeat, is_alive, replica_load
from aivailable.core.placement import Placed, place
from aivailable.core.records import Deployment, Replica, Status
from aivailable.core.state import State

LEADERLESS_MS = 10_000
"""A new leader usually comes within a second; so long without one is a lost quorum."""

Islands = Mapping[ReplicaId, Replica]


def wanted_islands(
    node: NodeId, state: State, liveness: Liveness, leaderless_ms: int, running: Islands
) -> dict[ReplicaId, Replica]:
    """The islands that this node should have now; those with `drain` are on their way out.

    `leaderless_ms`: since when no leader is known, 0 while there is one.
    """
    islands = {key: _kept(node, state, liveness, running[key]) for key in sorted(running)}
    islands = {key: entry for key, entry in islands.items() if key not in state.replicas}
    if leaderless_ms < LEADERLESS_MS or node not in state.members:
        return islands
    for deployment in sorted(
        state.deployments.values(),
        key=lambda entry: (-entry.priority, -entry.need_bytes, entry.name),
    ):
        if deployment.replicas_min < 1 or _served(node, state, liveness, deployment, islands):
            continue
        overlay = replace(state, replicas={**state.replicas, **islands})
        answer = place(overlay, liveness, deployment)
        if isinstance(answer, Placed) and answer.node == node:
            island = _island(node, deployment, answer)
            islands[island.replica] = island
    return islands


def adoptions(
    node: NodeId, state: State, islands: Islands, ready: tuple[ReplicaId, ...]
) -> tuple[AdoptReplica, ...]:
    """What to offer when the log is back: ready islands whose deployment lacks a replica."""
    offers = []
    for key in sorted(islands):
        island = islands[key]
        deployment = state.deployments.get(island.deployment)
        if key not in ready or island.drain or deployment is None:
            continue
        if deployment.generation == island.generation and state.lacks_replica(deployment):
            offers.append(
                AdoptReplica(key, island.deployment, island.generation, node, island.claims)
            )
    return tuple(offers)


def _kept(node: NodeId, state: State, liveness: Liveness, island: Replica) -> Replica:
    """Committed placements win: the island drains once one of them serves, or needs its room."""
    deployment = state.deployments.get(island.deployment)
    outdated = deployment is None or deployment.generation != island.generation
    replaced = any(
        entry.node == node or _ready(state, liveness, entry)
        for entry in state.replicas_of(island.deployment)
        if not entry.drain
    )
    return replace(island, drain=True) if outdated or replaced else island


def _served(
    node: NodeId, state: State, liveness: Liveness, deployment: Deployment, islands: Islands
) -> bool:
    """Some reachable node runs it, or will by what is placed there."""
    if any(entry.deployment == deployment.name for entry in islands.values()):
        return True
    after_ms = state.settings.down_after_ms
    if any(
        is_alive(liveness, entry.node, after_ms) and not entry.drain
        for entry in state.replicas_of(deployment.name)
    ):
        return True
    for member in sorted(state.members):
        heartbeat = fresh_heartbeat(liveness, member, after_ms) if member != node else None
        for load in heartbeat.replicas if heartbeat is not None else ():
            if load.island and load.deployment == deployment.name:
                return True
    return False


def _ready(state: State, liveness: Liveness, entry: Replica) -> bool:
    load = replica_load(liveness, entry.node, entry.replica, state.settings.down_after_ms)
    return entry.status is Status.READY and load is not None and load.status == Status.READY


def _island(node: NodeId, deployment: Deployment, placed: Placed) -> Replica:
    return Replica(
        replica=island_id(deployment.name, deployment.generation, node),
        deployment=deployment.name,
        digest=deployment.digest,
        generation=deployment.generation,
        node=node,
        claims=placed.claims,
        context=deployment.context,
        slots=deployment.slots,
    )
