"""When clusters end in others: which of two does, who finds the way, and founding from a copy.

Owns the rules around merging and tombstones, and what stays of a state when its majority is gone
for good.

Two clusters of one name that meet. The winner commits `Adopt`, which lists the other's members;
only then the loser commits `Dissolve` through its own quorum, and its members go. Of the two at
most one dissolves, whatever either believed of the other's size, since `apply` refuses `Dissolve`
* while members of an adopted cluster are still on their way: they would arrive at a dead one;
  but of two that have adopted each other the one with the greater id may (`may_end_in`);
* into a cluster that has ended here;
* for other members than those that were adopted: who came meanwhile would be left behind.

Why a stranger takes over nothing. Members, pristine or not, even the id: all that the other side
says of itself is its own word, and a hostile program says "a hundred members". So what it says
only decides which side may *ask*. Ours ends by itself only when it has nothing to lose and
is open anyhow: our own window open, nothing deployed, no operator's hand in it yet. Whoever could
abuse that could as well have walked in through the window. A join key, proved both ways before the
first word of a merge, stands for both open windows. In every other case only our own operator ends
it, by naming the other cluster's id (`aivailable merge ID`), as seen over there.
The winner's risk is smaller: it lets in the listed nodes, so it adopts only when its own window is
open, or the join key was proved (then it lets in whoever has the key at any time).

Not to be confused with `core.state.changes.merging`, which applies the two commands, nor with
`peer.membership.merging`, which takes the steps.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from aivailable.advice import ADMIT, MERGE, STATUS
from aivailable.core.ids import ClusterId, KeyId, NodeId, short
from aivailable.core.state.crossing import Departure, Way, may_go
from aivailable.core.state.founding import ClusterFacts
from aivailable.core.state.keys import RECORDS_LEVEL, KeyEndings, ended, endings
from aivailable.core.state.records import Event, JoinWindow, Role, Tombstone
from aivailable.core.state.removal import with_removed
from aivailable.core.state.state import EVENTS_MAX, State

TOMBSTONES_MAX = 8
"""Ended clusters remembered; the oldest that awaits nobody goes first."""


ADOPTED_MAX = 48
"""Members of a cluster that can end in another: their ids fit one frame of the join channel."""


def wins(one: ClusterFacts, other: ClusterFacts) -> bool:
    """Whether `one` stays: more members, then not pristine, then the smaller id."""
    return _rank(one) < _rank(other)


def _rank(facts: ClusterFacts) -> tuple[int, bool, ClusterId]:
    return -facts.members, facts.pristine, facts.cluster_id


def facts_of(state: State, cluster: ClusterId) -> ClusterFacts:
    """What we tell others of ourselves."""
    return ClusterFacts(cluster, max(1, len(state.members)), state.pristine)


@dataclass(frozen=True, slots=True)
class Meeting:
    """Two clusters of one name, as one of them sees it."""

    mine: ClusterFacts
    other: ClusterFacts
    """By its own word."""
    window_open: bool
    """Ours."""
    other_open: bool
    unused: bool
    """Ours: nothing deployed, no operator's hand in it."""
    keyed: bool = False
    """Both have a join key: whether it is one key, the merge itself proves both ways."""


@dataclass(frozen=True, slots=True)
class Apart:
    """The two stay apart; what a person could do."""

    advice: str


@dataclass(frozen=True, slots=True)
class EndInOther:
    """Ask the other to adopt us, then dissolve."""


def meet(meeting: Meeting, ordered: bool = False) -> Apart | EndInOther:
    """What to do about the other cluster. `ordered`: our operator has named its id."""
    mine, other = meeting.mine, meeting.other
    seen = f"another cluster of this name ({short(other.cluster_id)}, {other.members} node(s))"
    if wins(mine, other):
        return Apart(
            f"{seen} is here. To let it end in this one: {ADMIT} here, then"
            f" {MERGE.of(mine.cluster_id)} there"
        )
    leaving = Departure(
        Way.ORDERED if ordered else Way.MERGING,
        meeting.unused,
        meeting.window_open,
        meeting.other_open,
        meeting.keyed,
    )
    if may_go(leaving):
        return EndInOther()
    return Apart(
        f"{seen} is here. To let this one end in it: {ADMIT} there, then"
        f" {MERGE.of(other.cluster_id)} here"
    )


def is_unused(state: State) -> bool:
    return not state.deployments and not state.operator_touched


def may_end_in(state: State, own: ClusterId, into: ClusterId) -> str:
    """Why this cluster must not dissolve into that one now; "" = it may."""
    if into == own:
        return "a cluster cannot end in itself"
    for ended_cluster in state.tombstones:
        if not ended_cluster.merged:
            continue
        if ended_cluster.cluster_id == into and not ended_cluster.awaited:
            return f"{short(into)} has ended in this one"
        if ended_cluster.awaited and not (ended_cluster.cluster_id == into and into < own):
            return f"members of {short(ended_cluster.cluster_id)} are still on their way here"
    return ""


def adopted(state: State, cluster: ClusterId, members: Sequence[NodeId]) -> bool:
    """Whether all these of that cluster are in or may come in: it may go on to dissolve."""
    for ended_cluster in state.tombstones:
        if ended_cluster.merged and ended_cluster.cluster_id == cluster:
            return all(node in ended_cluster.awaited or node in state.members for node in members)
    return False


def listing(state: State, node: NodeId, cluster: ClusterId = "") -> Tombstone | None:
    """The tombstone that lets this node in with no window: of `cluster`, or of any."""
    for tombstone in state.tombstones:
        if node in tombstone.awaited and cluster in ("", tombstone.cluster_id):
            return tombstone
    return None


def without_awaited(tombstones: Sequence[Tombstone], node: NodeId) -> tuple[Tombstone, ...]:
    """The node has come, in whatever way. Struck off for good: were it removed later, no
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
    awaited: tuple[str, ...]
    """Of them, those that are let in again when they come back. The others are out for good."""
    ended_keys: tuple[KeyId, ...]
    """Revoked with those that are out for good."""
    lost_models: tuple[str, ...]
    """Catalogue entries, and companions of deployments, whose only verified copies were there."""


def recovered(
    state: State,
    node: NodeId,
    cluster_id: ClusterId,
    *,
    actor: str,
    at_ms: int,
    expected: Collection[NodeId] | None = None,
    keep_keys: Collection[KeyId] = (),
) -> Recovered:
    """The cluster of one that `node` founds from its copy of the state.

    Keys, models, deployments, settings and history stay; the others' membership, claims, copies
    and devices end. A tombstone lists those that are `expected` (None: all of them): whoever was
    not gone after all is let in again. The others are removed for good, with the keys that came
    through them. Raises ValueError when the copy holds no cluster with this node as member, when
    somebody unknown is expected, or when the last admin key would end.
    """
    own = state.members.get(node)
    if own is None or state.cluster is None:
        raise ValueError("this node's copy holds no cluster that it is a member of")
    others = tuple(sorted(other for other in state.members if other != node))
    awaited, given_up, keys = _parted(state, others, expected, keep_keys)
    records = state.feature_level >= RECORDS_LEVEL
    copies = {digest: (node,) for digest, nodes in sorted(state.copies.items()) if node in nodes}
    ended_cluster = Tombstone(state.cluster.cluster_id, state.cluster.name, awaited, merged=False)
    ended_clusters = with_tombstone(state.tombstones, ended_cluster) or (
        *state.tombstones[1:],
        ended_cluster,
    )
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
        tombstones=ended_clusters,
        keys=ended(state.keys, keys.ends, state.version + 1 if records else 0),
        removed=with_removed(state.removed, given_up if records else ()),
        operator_touched=True,
    )
    gone = tuple(state.members[other].name for other in others)
    lost = tuple(model.name for key, model in sorted(state.models.items()) if key not in copies)
    lost += tuple(
        f"{name}'s {entry.option}={entry.path}"
        for name, deployment in sorted(state.deployments.items())
        for entry in deployment.companions
        if entry.digest not in copies
    )
    text = f"{own.name} founded the cluster anew from its copy; given up: "
    text += ", ".join(gone) or "nobody"
    event = Event(
        after.version, "recovered", node, actor, "the majority is gone for good", at_ms, text
    )
    return Recovered(
        replace(after, events=(*state.events, event)[-EVENTS_MAX:]),
        gone,
        lost_models=lost,
        awaited=tuple(state.members[other].name for other in awaited),
        ended_keys=keys.ends,
    )


def _parted(
    state: State,
    others: tuple[NodeId, ...],
    expected: Collection[NodeId] | None,
    keep_keys: Collection[KeyId],
) -> tuple[tuple[NodeId, ...], tuple[NodeId, ...], KeyEndings]:
    """Who may come back, who may not, and the keys that end with these. Raises ValueError."""
    unknown = [other for other in expected or () if other not in state.members]
    if unknown:
        raise ValueError(f"{short(unknown[0])} is not a member; see {STATUS}")
    awaited = tuple(other for other in others if expected is None or other in expected)
    given_up = tuple(other for other in others if other not in awaited)
    keys = endings(state, given_up, keep_keys)
    if given_up and keys.problem:
        raise ValueError(keys.problem)
    return awaited, given_up, keys
