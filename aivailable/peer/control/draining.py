"""Maintenance of a node: it takes nothing new and what runs there moves, or it serves again.

Owns the check before a drain: whether anything could take over. Who moves where is the planner's.
"""

from __future__ import annotations

from aivailable.core.ids import NodeId, short
from aivailable.core.planning.forecast import stranded, usable
from aivailable.core.serving.status import DrainStatus
from aivailable.core.state.commands import SetDraining
from aivailable.core.state.node_names import shown_name
from aivailable.errors import RequestError
from aivailable.peer.control.cluster_view import ClusterView
from aivailable.peer.control.proposals import Proposer


async def set_draining(
    node: NodeId,
    draining: bool,
    *,
    cluster: ClusterView,
    proposer: Proposer,
    force: bool,
    actor: str,
) -> DrainStatus:
    """Idempotent.

    Raises RequestError 404 for no member, 409 `last_node` when no other node could take anything
    and `force` is not given; ProposalError.
    """
    state, liveness = cluster.state, cluster.liveness()
    member = state.members.get(node)
    if member is None:
        raise RequestError(404, "unknown_node", f"{short(node)} is not a member")
    name = shown_name(state.members, node)
    staying = stranded(state, liveness, node) if draining else ()
    others = [other for other in state.members if other != node]
    if (
        draining
        and not member.draining
        and not force
        and not any(usable(state, liveness, other) for other in others)
    ):
        dark = f"; with it goes dark: {', '.join(staying)}" if staying else ""
        raise RequestError(
            409,
            "last_node",
            f"{name} is the last usable node: nothing could run elsewhere{dark}; --force"
            " drains it all the same",
        )
    if member.draining != draining:
        await proposer.propose(
            SetDraining(node, draining), actor=actor, reason="drain" if draining else "undrain"
        )
    moving = tuple(
        replica.replica for replica in state.replicas_on(node) if replica.deployment not in staying
    )
    return DrainStatus(
        node=node,
        name=name,
        draining=draining,
        changed=member.draining != draining,
        moving=moving if draining else (),
        staying=staying,
    )
