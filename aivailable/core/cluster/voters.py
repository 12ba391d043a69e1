"""Who should vote: one small step at a time.

Owns the target and the order of changes to the Raft membership. Changes nothing itself; the
membership is changed by `raft.membership` one server at a time, and recorded by `SetRole`. The
leader asks after each applied change and each heartbeat.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from aivailable.core.cluster.liveness import Liveness, is_alive
from aivailable.core.ids import NodeId
from aivailable.core.state.records import Role
from aivailable.core.state.state import State


@dataclass(frozen=True, slots=True)
class Promote:
    """Add this observer to the Raft voters."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class Demote:
    """Take this node out of the Raft voters."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class TransferFirst:
    """The leader itself has to go: another one leads first, whoever has caught up."""


@dataclass(frozen=True, slots=True)
class RecordRole:
    """Commit `SetRole`: the Raft membership already is so."""

    node: NodeId
    role: Role


SEAT_KEPT_SILENT_S = 600.0
SEAT_KEPT_AWAY_S = 24 * 3600.0

Step = Promote | Demote | TransferFirst | RecordRole


def target_voters(members: int) -> int:
    """How many of this many members should vote: by members, not by who is awake."""
    if members < 3:
        return 1
    return 3 if members < 5 else 5


def next_step(
    state: State,
    liveness: Liveness,
    raft_voters: Sequence[NodeId],
    caught_up: Collection[NodeId],
    here: NodeId,
    down_s: Mapping[NodeId, float],
) -> Step | None:
    """The next change due, or None. Call again when it has been done.

    `down_s`: for how many seconds this controller has known each member to be down.

    `raft_voters`: as Raft has it now. `caught_up`: observers whose log is as long as ours.
    An even number of voters survives no more failures than one fewer, so the way from 1 to 3
    (and from 3 to 5) starts only when both newcomers are live and caught up. A pair that lost
    its third on the way waits for it. `here` is never demoted.
    """
    for node in sorted(state.members):
        role = Role.VOTER if node in raft_voters else Role.OBSERVER
        if state.members[node].role is not role:
            return RecordRole(node, role)
    voters = [node for node in sorted(raft_voters) if node in state.members]
    strangers = [node for node in sorted(raft_voters) if node not in state.members]
    if strangers:
        return _expel(strangers, here)
    target = target_voters(len(state.members))
    if len(voters) > target:
        leaving = _least_wanted(state, liveness, voters, here)
        return Demote(leaving) if leaving is not None else None
    candidates = _candidates(state, liveness, voters, caught_up)
    if len(voters) < target:
        needed = 2 if len(voters) % 2 else 1
        return Promote(candidates[0]) if len(candidates) >= needed else None
    lost = [node for node in voters if node != here and _seat_is_lost(state, node, down_s)]
    if lost and candidates:
        # One more for a moment: the surplus, the lost voter first, is demoted by the next step.
        return Promote(candidates[0])
    return None


def _seat_is_lost(state: State, node: NodeId, down_s: Mapping[NodeId, float]) -> bool:
    """A reboot loses no seat; one lost in silence is given away after ten minutes, one that said
    good-bye is kept for a day."""
    member = state.members[node]
    kept_s = SEAT_KEPT_AWAY_S if member.away else SEAT_KEPT_SILENT_S
    return member.down and down_s.get(node, 0.0) >= kept_s


def _expel(strangers: Sequence[NodeId], here: NodeId) -> Step:
    """Voters that are members no more; the leader among them last, after handing over."""
    for node in strangers:
        if node != here:
            return Demote(node)
    return TransferFirst()


def _candidates(
    state: State, liveness: Liveness, voters: Sequence[NodeId], caught_up: Collection[NodeId]
) -> list[NodeId]:
    """Observers that could vote at once, sorted by id: no two nodes' clocks are comparable."""
    return [
        node
        for node in sorted(state.members)
        if node not in voters
        and node in caught_up
        and not state.members[node].down
        and is_alive(liveness, node, state.settings.down_after_ms)
    ]


def _least_wanted(
    state: State, liveness: Liveness, voters: Sequence[NodeId], here: NodeId
) -> NodeId | None:
    """Down before silent before live, then the last by id; never the leader."""
    after_ms = state.settings.down_after_ms
    others = sorted((node for node in voters if node != here), reverse=True)
    others.sort(key=lambda node: (not state.members[node].down, is_alive(liveness, node, after_ms)))
    return others[0] if others else None
