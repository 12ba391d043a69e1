"""What is asked for, what is idle, and for how long: the rules of loading on demand.

Owns when a deployment of `replicas 0..N` should run, and when a running replica has been idle for
long enough to go. Ages come from the nodes themselves (heartbeats, each by its own monotonic
clock), so that a new controller knows as much as the old one. Unknown is never idle: who is not
heard keeps what it runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from aivailable.core.cluster.liveness import Liveness, fresh_heartbeat, silent_ms
from aivailable.core.ids import NodeId
from aivailable.core.state.records import ClusterSettings, Deployment, Replica, Status
from aivailable.core.state.state import State
from aivailable.wire.peer import ReplicaLoad

ASKED_MAX_MS = 300_000
"""A load whose last client went away goes on for this long: then nobody seems to want it."""
EVICT_IDLE_MS = 5_000
"""Idle for less is between two requests: it is not evicted for another."""
IDLE_TTL_MIN_MS = 5_000
"""The least idle TTL that is acted on: news of use is a heartbeat old."""


@dataclass(frozen=True, slots=True)
class Asking:
    """One deployment without a ready replica, summed over all nodes that are heard."""

    waiting: int
    asked_ms: int


class ReplicaUsage:
    """What all fresh heartbeats say of use: made once for one decision."""

    def __init__(self, state: State, liveness: Liveness) -> None:
        self._settings = state.settings
        self._loads: dict[str, tuple[ReplicaLoad, int]] = {}
        self._asking: dict[str, Asking] = {}
        self._paused: dict[str, bool] = {}
        after_ms = state.settings.down_after_ms
        for node in sorted(state.members):
            heartbeat = fresh_heartbeat(liveness, node, after_ms)
            if heartbeat is None:
                continue
            age_ms = silent_ms(liveness, node)
            self._paused[node] = heartbeat.paused_left_s > 0
            for load in heartbeat.replicas:
                self._loads[load.replica] = load, age_ms
            for demand in heartbeat.demand:
                before = self._asking.get(demand.deployment, Asking(0, ASKED_MAX_MS))
                asked_ms = 0 if demand.waiting else demand.asked_ms + age_ms
                self._asking[demand.deployment] = Asking(
                    before.waiting + demand.waiting, min(before.asked_ms, asked_ms)
                )

    def is_paused(self, node: NodeId) -> bool:
        """Its owner wants the machine for a while (`aivailable pause`)."""
        return self._paused.get(node, False)

    def is_asked(self, deployment: str) -> bool:
        """Somebody waits for it, or did a moment ago."""
        asking = self._asking.get(deployment)
        return asking is not None and asking.asked_ms < ASKED_MAX_MS

    def waiting(self, deployment: str) -> int:
        """Requests that wait for its first replica, at all nodes together."""
        asking = self._asking.get(deployment)
        return 0 if asking is None else asking.waiting

    def load(self, replica: Replica) -> ReplicaLoad | None:
        found = self._loads.get(replica.replica)
        return None if found is None else found[0]

    def idle_ms(self, replica: Replica) -> int:
        """0 while it works, starts, or nothing is known of it."""
        found = self._loads.get(replica.replica)
        if found is None or replica.status is not Status.READY:
            return 0
        load, age_ms = found
        if load.status != Status.READY or not load.idle_ms or load.slots_busy or load.waiting:
            return 0
        return load.idle_ms + age_ms

    def outlived(self, deployment: Deployment, replica: Replica) -> bool:
        """Idle for its whole TTL. What is pinned stays once it is loaded."""
        ttl_ms = idle_ttl_ms(deployment, self._settings)
        return not deployment.pin and self.idle_ms(replica) >= ttl_ms

    def wanted(self, deployment: Deployment, replicas: list[Replica]) -> int:
        """How many replicas there should be for what is asked: `min`, or one on demand.

        `replicas`: its present ones. One that is in use keeps the deployment loaded, also when
        it has to move; one that drains already does not.
        """
        if deployment.replicas_min > 0:
            return deployment.replicas_min
        if self.is_asked(deployment.name):
            return 1
        in_use = any(not r.drain and not self.outlived(deployment, r) for r in replicas)
        return 1 if in_use else 0

    def floor(self, deployment: Deployment) -> int:
        """Below this many replicas nothing is taken from it for being idle."""
        asked = self.is_asked(deployment.name)
        return max(deployment.replicas_min, 1 if asked else 0)

    def evictable(self, deployment: Deployment, replica: Replica, count: int) -> bool:
        """It may give way to another of the same priority: unpinned, idle for more than a moment,
        and its deployment, which has `count`, need not have it."""
        if deployment.pin or replica.drain or count <= self.floor(deployment):
            return False
        return self.idle_ms(replica) >= EVICT_IDLE_MS

    def surplus(self, deployment: Deployment, current: list[Replica]) -> list[Replica]:
        """Of its up-to-date replicas those that nobody needs any more, the longest idle first."""
        idle = [replica for replica in current if self.outlived(deployment, replica)]
        idle.sort(key=lambda replica: (-self.idle_ms(replica), replica.replica))
        return idle[: max(0, len(current) - self.floor(deployment))]


def idle_ttl_ms(deployment: Deployment, settings: ClusterSettings) -> int:
    """The deployment's own, else the cluster's."""
    ttl_s = settings.idle_ttl_s if deployment.idle_ttl_s is None else deployment.idle_ttl_s
    return max(ttl_s * 1000, IDLE_TTL_MIN_MS)
