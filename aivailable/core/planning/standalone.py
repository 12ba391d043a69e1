"""Standalone replicas: what a node loads by itself while the log cannot change.

Owns which standalone replicas this node runs, when they drain, and which of them it offers to the
log. They live in the node's own ledger, never in the replicated state: `peer.serving.agent` adds
them to what is placed here and keeps their reports to itself. Loss of quorum freezes changes, never
serving.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from aivailable.core.cluster.liveness import Liveness, fresh_heartbeat, is_alive, replica_load
from aivailable.core.ids import NodeId, ReplicaId, standalone_id
from aivailable.core.planning.placement import Placed, place
from aivailable.core.state.commands import AdoptReplica
from aivailable.core.state.records import Deployment, Replica, Status
from aivailable.core.state.state import State

LEADERLESS_MS = 10_000
"""A new leader usually comes within a second; this long without one is a lost quorum."""

StandaloneReplicas = Mapping[ReplicaId, Replica]


def wanted_standalone(
    node: NodeId, state: State, liveness: Liveness, leaderless_ms: int, running: StandaloneReplicas
) -> dict[ReplicaId, Replica]:
    """The standalone replicas that this node should have now; those with `drain` are on their way
    out.

    `leaderless_ms`: since when no leader is known, 0 while there is one.
    """
    standalone = {key: _kept(node, state, liveness, running[key]) for key in sorted(running)}
    standalone = {key: entry for key, entry in standalone.items() if key not in state.replicas}
    if leaderless_ms < LEADERLESS_MS or node not in state.members:
        return standalone
    for deployment in sorted(
        state.deployments.values(),
        key=lambda entry: (-entry.priority, -entry.need_bytes, entry.name),
    ):
        if deployment.replicas_min < 1 or _served(node, state, liveness, deployment, standalone):
            continue
        overlay = replace(state, replicas={**state.replicas, **standalone})
        answer = place(overlay, liveness, deployment)
        if isinstance(answer, Placed) and answer.node == node:
            replica = _as_replica(node, deployment, answer)
            standalone[replica.replica] = replica
    return standalone


def adoptions(
    node: NodeId, state: State, standalone: StandaloneReplicas, ready: tuple[ReplicaId, ...]
) -> tuple[AdoptReplica, ...]:
    """What to offer when the log is back: ready standalone replicas whose deployment lacks a
    replica."""
    offers = []
    for key in sorted(standalone):
        replica = standalone[key]
        deployment = state.deployments.get(replica.deployment)
        if key not in ready or replica.drain or deployment is None:
            continue
        if deployment.generation == replica.generation and state.lacks_replica(deployment):
            offers.append(
                AdoptReplica(key, replica.deployment, replica.generation, node, replica.claims)
            )
    return tuple(offers)


def _kept(node: NodeId, state: State, liveness: Liveness, replica: Replica) -> Replica:
    """Committed placements win: the standalone replica drains once one of them serves, or needs its
    room."""
    deployment = state.deployments.get(replica.deployment)
    outdated = deployment is None or deployment.generation != replica.generation
    replaced = any(
        entry.node == node or _ready(state, liveness, entry)
        for entry in state.replicas_of(replica.deployment)
        if not entry.drain
    )
    return replace(replica, drain=True) if outdated or replaced else replica


def _served(
    node: NodeId,
    state: State,
    liveness: Liveness,
    deployment: Deployment,
    standalone: StandaloneReplicas,
) -> bool:
    """Some reachable node runs it, or will by what is placed there."""
    if any(entry.deployment == deployment.name for entry in standalone.values()):
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


def _as_replica(node: NodeId, deployment: Deployment, placed: Placed) -> Replica:
    return Replica(
        replica=standalone_id(deployment.name, deployment.generation, node),
        deployment=deployment.name,
        digest=deployment.digest,
        generation=deployment.generation,
        node=node,
        claims=placed.claims,
        context=deployment.context,
        slots=deployment.slots,
    )
