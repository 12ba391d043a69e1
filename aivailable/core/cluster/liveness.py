"""Who is heard: the soft state behind `down`, routing and placement.

Owns the rules that turn heartbeats into alive, silent and missing. Must not enter the replicated
state, except as the planner's `MarkDown`. Built by `peer.control.heartbeat`; read by planner,
router, voters and view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aivailable.core.ids import NodeId
from aivailable.wire.peer import DeviceLoad, Heartbeat, ReplicaLoad

NEWCOMER_GRACE_MS = 10_000
"""After our own start, and after a member was admitted, links are still being made: this long
nobody counts as missing but those who spoke and fell silent."""


@dataclass(frozen=True, slots=True)
class Heard:
    """The last heartbeat of a node, and when it came (monotonic seconds of this node)."""

    node: NodeId
    heartbeat: Heartbeat
    at_s: float


@dataclass(frozen=True, slots=True)
class Liveness:
    """What this node hears now. All times are seconds of this node's monotonic clock."""

    here: NodeId
    now_s: float
    linked: tuple[NodeId, ...]
    """Nodes with a live link to us, sorted."""
    heard: Mapping[NodeId, Heard]
    """Last heartbeats; our own is under `here`."""
    started_s: float
    """When this node began to listen."""
    known_s: Mapping[NodeId, float] = field(default_factory=dict)
    """When this node first saw each member in the replicated state; absent = since our start."""


def silent_ms(liveness: Liveness, node: NodeId) -> int:
    """Since the node's last heartbeat; since we could first have heard it when there was none.
    0 for ourselves."""
    if node == liveness.here:
        return 0
    heard = liveness.heard.get(node)
    since_s = _awaited_since_s(liveness, node) if heard is None else heard.at_s
    return max(0, round((liveness.now_s - since_s) * 1000))


def is_alive(liveness: Liveness, node: NodeId, down_after_ms: int) -> bool:
    """A heartbeat of the node is fresh (we ourselves always are)."""
    if node == liveness.here:
        return True
    return node in liveness.heard and silent_ms(liveness, node) < down_after_ms


def fresh_heartbeat(liveness: Liveness, node: NodeId, down_after_ms: int) -> Heartbeat | None:
    """The node's last heartbeat, unless it is too old to be believed."""
    heard = liveness.heard.get(node)
    if heard is None or not is_alive(liveness, node, down_after_ms):
        return None
    return heard.heartbeat


def replica_load(
    liveness: Liveness, node: NodeId, replica: str, down_after_ms: int
) -> ReplicaLoad | None:
    """What the node's fresh heartbeat says of one of its replicas."""
    heartbeat = fresh_heartbeat(liveness, node, down_after_ms)
    for load in heartbeat.replicas if heartbeat is not None else ():
        if load.replica == replica:
            return load
    return None


def device_load(
    liveness: Liveness, node: NodeId, device_id: str, down_after_ms: int
) -> DeviceLoad | None:
    """What the node's fresh heartbeat says of one of its devices."""
    heartbeat = fresh_heartbeat(liveness, node, down_after_ms)
    for load in heartbeat.devices if heartbeat is not None else ():
        if load.device_id == device_id:
            return load
    return None


def missing_members(
    liveness: Liveness, members: Sequence[NodeId], down_after_ms: int
) -> frozenset[NodeId]:
    """Each of `members` that more than half of the live members other than itself miss: it
    takes a majority to call a node down.

    Witnesses are we ourselves and every other member with a fresh heartbeat. We miss a node that
    was silent for `down_after_ms`; another misses it when its heartbeat does not name it in
    `hears`. So one that only the controller has lost is not down while a second witness hears it.
    Without another live witness (a cluster of two, or the last one standing) our own ears decide:
    nobody else could ever mark the node down, and without a quorum the mark is never committed.
    All at once, since asking one by one costs the cube of their number.
    """
    heard_by = dict.fromkeys(members, 0)
    witnesses = []
    for member in members:
        heartbeat = fresh_heartbeat(liveness, member, down_after_ms)
        if heartbeat is None or member == liveness.here:
            continue
        witnesses.append(member)
        for node in dict.fromkeys(heartbeat.hears):
            if node in heard_by and node != member:
                heard_by[node] += 1
    fresh = frozenset(witnesses)
    missing = set()
    for node in members:
        if node == liveness.here or _in_grace(liveness, node, down_after_ms):
            continue
        others = len(fresh) - (node in fresh)
        missed = (silent_ms(liveness, node) >= down_after_ms) + others - heard_by[node]
        if 2 * missed > 1 + others:
            missing.add(node)
    return frozenset(missing)


def never_heard(liveness: Liveness, members: Sequence[NodeId], for_ms: int) -> tuple[NodeId, ...]:
    """Who has not sent us one heartbeat in this long, since we began to listen or it came."""
    return tuple(
        node
        for node in members
        if node not in liveness.heard and silent_ms(liveness, node) >= for_ms
    )


def _awaited_since_s(liveness: Liveness, node: NodeId) -> float:
    return max(liveness.started_s, liveness.known_s.get(node, liveness.started_s))


def _in_grace(liveness: Liveness, node: NodeId, down_after_ms: int) -> bool:
    """New to us, and not one that spoke and then fell silent."""
    waited_ms = (liveness.now_s - _awaited_since_s(liveness, node)) * 1000
    if waited_ms >= NEWCOMER_GRACE_MS:
        return False
    return node not in liveness.heard or is_alive(liveness, node, down_after_ms)
