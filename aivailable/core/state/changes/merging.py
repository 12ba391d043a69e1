"""Handlers: adopting another cluster, and ending in one. The rules are in core.state.merging.

Not to be confused with `core.state.merging`, which holds the rules, nor with
`peer.membership.merging`, which takes the steps on a node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aivailable.advice import ADMIT
from aivailable.core.ids import NODE_ID_CHARS, short
from aivailable.core.state.changes.change import Change, Handler, Reject
from aivailable.core.state.changes.members import MEMBERS_MAX, NAME_MAX_CHARS
from aivailable.core.state.commands import Adopt, Command, Dissolve
from aivailable.core.state.merging import ADOPTED_MAX, adopted, may_end_in, with_tombstone
from aivailable.core.state.records import Dissolved, Tombstone
from aivailable.core.state.removal import removed_for_good
from aivailable.core.state.state import State

CLUSTER_ID_MAX_CHARS = 64
SUCCESSORS_MAX = 16
SUCCESSOR_ADDRESSES_MAX = 8


def adopt(state: State, _command: Command, body: Adopt) -> Change | Reject:
    if state.cluster is None or body.cluster_id == state.cluster.cluster_id:
        return Reject("itself", "a cluster cannot adopt itself")
    if not 0 < len(body.cluster_id) <= CLUSTER_ID_MAX_CHARS or len(body.name) > NAME_MAX_CHARS:
        return Reject("invalid_cluster", "a cluster has an id and a short name")
    if adopted(state, body.cluster_id, body.members):
        return Change(state)
    if body.window_serial is not None and (
        not state.window.open or body.window_serial != state.window.serial
    ):
        return Reject("window_closed", f"the join window is closed; type {ADMIT}")
    if not 0 < len(body.members) <= ADOPTED_MAX:
        return Reject("too_many", f"a cluster of 1 to {ADOPTED_MAX} members can end in another")
    if any(not 0 < len(node) <= NODE_ID_CHARS for node in body.members):
        return Reject("invalid_member", "a member has an id")
    for node in body.members:
        if refusal := removed_for_good(state, node):
            return Reject("removed", refusal)
    known = [t.awaited for t in state.tombstones if t.cluster_id == body.cluster_id and t.merged]
    listed = {node: None for nodes in (*known, body.members) for node in nodes}
    awaited = tuple(sorted(node for node in listed if node not in state.members))
    if len(state.members) + len(awaited) > MEMBERS_MAX:
        return Reject("full", f"a cluster has at most {MEMBERS_MAX} members")
    ended_clusters = with_tombstone(
        state.tombstones, Tombstone(body.cluster_id, body.name, awaited)
    )
    if ended_clusters is None:
        return Reject("full", "members of too many ended clusters are still on their way")
    text = f"{len(awaited)} node(s) of cluster {short(body.cluster_id)} may come in: it ends here"
    return Change(replace(state, tombstones=ended_clusters), "adopted", body.cluster_id, text)


def dissolve(state: State, _command: Command, body: Dissolve) -> Change | Reject:
    if state.cluster is None or not 0 < len(body.into) <= CLUSTER_ID_MAX_CHARS:
        return Reject("invalid_cluster", "a cluster ends in another, named by its id")
    problem = may_end_in(state, state.cluster.cluster_id, body.into)
    if problem:
        return Reject("not_now", problem)
    if any(node not in body.members for node in state.members):
        return Reject("members_changed", "a member came meanwhile; ask the other cluster again")
    if len(body.refuges) > SUCCESSORS_MAX or any(
        len(successor.addresses) > SUCCESSOR_ADDRESSES_MAX for successor in body.refuges
    ):
        return Reject(
            "too_many", f"at most {SUCCESSORS_MAX} nodes, {SUCCESSOR_ADDRESSES_MAX} addresses"
        )
    ended = Dissolved(body.into, body.name[:NAME_MAX_CHARS], body.refuges)
    after = replace(state, dissolved=ended, window=replace(state.window, open=False))
    return Change(after, "dissolved", body.into, f"this cluster ends in {short(body.into)}")


MERGING_HANDLERS: Mapping[type[Any], Handler] = {Adopt: adopt, Dissolve: dissolve}
