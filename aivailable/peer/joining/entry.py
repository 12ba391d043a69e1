"""What an admission is made of: a request as member and keys, an answer as cluster file.

Pure rewriting between wire and records; who is let in is membership's to decide.
"""

from __future__ import annotations

from aivailable.core.ids import ClusterId, NodeId, key_id, short
from aivailable.core.state.levels import newcomer_too_old
from aivailable.core.state.records import ApiKey, Member, Role, Scope, Tombstone
from aivailable.core.state.state import State
from aivailable.peer.joining.cluster_file import ClusterFile, seats_of
from aivailable.wire.join import JoinAnswer, JoinRequest
from aivailable.wire.limits import PROTO_MAX, PROTO_MIN

NAME_MAX_CHARS = 64


def other_version(request: JoinRequest, state: State) -> str:
    """Why the newcomer's version does not fit this cluster, and what to do; "" = it does.

    A cluster that asks to end here is as old as the oldest of its members.
    """
    if request.proto_max < PROTO_MIN or request.proto_min > PROTO_MAX:
        return (
            f"this cluster speaks protocol {PROTO_MIN}–{PROTO_MAX}, the newcomer "
            f"{request.proto_min}–{request.proto_max}: install the same version on both"
        )
    stated = request.feature_max
    if request.merge is not None:
        stated = min(stated, request.merge.feature_max)
    return newcomer_too_old(stated, state.feature_level) if stated < state.feature_level else ""


def member_of(request: JoinRequest, node: NodeId) -> Member:
    """The verified newcomer as the state will know it."""
    return Member(
        node=node,
        name=request.name[:NAME_MAX_CHARS] or short(node),
        certificate=request.certificate,
        addresses=request.addresses,
        link_port=request.link_port,
        api_port=request.api_port,
        version=request.version,
        proto_min=request.proto_min,
        proto_max=request.proto_max,
        feature_max=request.feature_max,
        instance_id=request.instance_id,
    )


def keys_of(request: JoinRequest, at_ms: int) -> tuple[ApiKey, ...]:
    """The newcomer's own admin key. Older versions state it in a list, which may be longer."""
    label = f"member {request.name[:NAME_MAX_CHARS]}"
    return tuple(
        ApiKey(key_id(hashed), hashed, Scope.ADMIN, label, at_ms)
        for hashed in request.key_hashes[:1]
    )


def welcome(cluster_id: ClusterId, name: str, state: State) -> JoinAnswer:
    """Admitted: the cluster, and whom to link to."""
    return JoinAnswer("", "", cluster_id, name, seats_of(state), version=state.version)


def file_of(answer: JoinAnswer, node: NodeId) -> ClusterFile:
    """How `node`, admitted as an observer, begins in the cluster."""
    return ClusterFile(
        cluster_id=answer.cluster_id,
        name=answer.cluster_name,
        role=Role.OBSERVER,
        voters=tuple(seat.node for seat in answer.seats if seat.voter),
        seats=tuple(seat for seat in answer.seats if seat.node != node),
        seats_version=answer.version,
    )


def why(*, known: bool, by_key: bool, listed: Tombstone | None, serial: int) -> str:
    """The reason that the log keeps of an admission."""
    if known:
        return "known member"
    if by_key:
        return "join key"
    if listed is not None:
        return f"its cluster {short(listed.cluster_id)} has ended in this one"
    return f"join window {serial}"
