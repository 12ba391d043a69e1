"""More replicas of what is busy, between a deployment's minimum and maximum.

Owns when one more is worth its memory. Extra replicas only ever take room that is free; they are
the first to give way (`core.planning.preemption`), and go when they have been idle for their TTL
(`core.planning.idle_policy`). It comes last in a plan, when everything demanded has its place.
"""

from __future__ import annotations

from aivailable.core.planning.idle_policy import ReplicaUsage
from aivailable.core.state.records import ClusterSettings, Deployment, Replica, Status

QUEUED_MS = 10_000
"""This long all slots of all replicas were taken and requests waited: one more is due."""
SPARE_BUSY = 0.5
"""This share of all slots was busy for a minute or so: spare memory may help. Half of it is left
when the replica has come, so that a second look does not take it away again."""


def grows(
    deployment: Deployment, current: list[Replica], usage: ReplicaUsage, settings: ClusterSettings
) -> bool:
    """Whether one more replica is wanted. One at a time: what is on its way may be enough.

    `current`: its up-to-date replicas; the first one is no question of load.
    """
    if not 0 < len(current) < deployment.replicas_max:
        return False
    loads = [usage.load(replica) for replica in current if replica.status is Status.READY]
    known = [load for load in loads if load is not None and load.status == Status.READY]
    if len(known) < len(current):
        return False
    if all(load.queued_ms >= QUEUED_MS for load in known):
        return True
    return settings.spare_fill and sum(load.busy for load in known) >= SPARE_BUSY * len(known)


def most_wanted(
    order: list[Deployment], current: dict[str, list[Replica]], usage: ReplicaUsage
) -> list[Deployment]:
    """Who is asked first whether it grows: by priority, then by how busy it is."""

    def busy(deployment: Deployment) -> float:
        loads = [usage.load(replica) for replica in current[deployment.name]]
        return sum(load.busy * load.slots + load.waiting for load in loads if load is not None)

    return sorted(order, key=lambda entry: (-entry.priority, -busy(entry), entry.name))
