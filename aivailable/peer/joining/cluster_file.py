"""What a node keeps in home about the cluster it belongs to, to find it again after a restart."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from aivailable.core.ids import ClusterId, NodeId, short
from aivailable.core.state.levels import LEVEL, too_old_for
from aivailable.core.state.records import Role
from aivailable.core.state.state import State
from aivailable.errors import CodeTooOld, ConfigError, SchemaError
from aivailable.peer.ports import Contact, Home, Ports
from aivailable.wire.join import Seat
from aivailable.wire.schema import pack, since, unpack

CLUSTER_FILE = "cluster"

log = logging.getLogger("aivailable.membership")


@dataclass(frozen=True, slots=True)
class ClusterFile:
    """`seats` are the other members' certificates and last known addresses; `role` and `voters`
    say how Raft was first opened (its own store knows better afterwards)."""

    cluster_id: ClusterId
    name: str
    role: Role
    voters: tuple[str, ...]
    seats: tuple[Seat, ...] = ()
    seats_version: int = 0
    """The version of the state that the seats are from (peer.control.member_list)."""
    feature_level: int = 1
    """The highest that the cluster was seen to work at: older code must not even start."""
    node: NodeId = field(default="", metadata=since(2))
    """Whose membership this is; "" in files of earlier versions."""

    def is_of(self, node: NodeId) -> bool:
        """Whether that node is a member by this record: not after its identity has changed."""
        if self.node:
            return self.node == node
        return self.role is not Role.VOTER or node in self.voters

    @staticmethod
    def load(home: Home) -> ClusterFile | None:
        """Raises ConfigError when the file is damaged, CodeTooOld after a downgrade."""
        data = home.load(CLUSTER_FILE)
        if data is None:
            return None
        try:
            file = unpack(ClusterFile, data)
        except SchemaError as error:
            raise ConfigError(
                f"the file {CLUSTER_FILE!r} in home is damaged ({error}); remove it to join anew"
            ) from error
        if file.feature_level > LEVEL:
            raise CodeTooOld(too_old_for(file.feature_level))
        return file

    def save(self, home: Home) -> None:
        home.save(CLUSTER_FILE, pack(self))

    def contacts(self) -> tuple[Contact, ...]:
        return tuple(
            Contact(
                seat.node,
                seat.certificate,
                tuple((address, seat.link_port) for address in seat.addresses),
            )
            for seat in self.seats
        )


def lay_aside(file: ClusterFile, ports: Ports, tell: Callable[[str], None]) -> None:
    """The membership of an identity that this node no longer has: nobody would link to us."""
    where = f"cluster {file.name!r} ({short(file.cluster_id)})"
    tell(
        f"this node's identity has changed, so it is not a member of {where} any more. It keeps its"
        " models and looks for a cluster again"
    )
    log.warning("the identity has changed: not a member of %s any more", where)
    ports.home.remove(CLUSTER_FILE)
    ports.drop_raft_store(file.cluster_id)


def seats_of(state: State) -> tuple[Seat, ...]:
    """All members as seats, voters first: what a newcomer needs most."""
    members = [state.members[node] for node in sorted(state.members)]
    return tuple(
        Seat(
            node=member.node,
            certificate=member.certificate,
            addresses=member.addresses,
            link_port=member.link_port,
            voter=member.role is Role.VOTER,
        )
        for member in sorted(members, key=lambda entry: entry.role is not Role.VOTER)
    )
