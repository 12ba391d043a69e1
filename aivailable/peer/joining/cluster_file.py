"""What a node keeps in home about the cluster it belongs to, to find it again after a restart."""

from __future__ import annotations

from dataclasses import dataclass, field

from aivailable.core.ids import ClusterId, NodeId
from aivailable.core.state.levels import LEVEL, too_old_for
from aivailable.core.state.records import Role
from aivailable.core.state.state import State
from aivailable.errors import CodeTooOld, ConfigError, SchemaError
from aivailable.peer.ports import Contact, Home
from aivailable.wire.join import Seat
from aivailable.wire.schema import pack, since, unpack

CLUSTER_FILE = "cluster"


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
    node: str = field(default="", metadata=since(2))
    """Whose file it is; "" = written before this was kept."""

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

    def belongs_to(self, node: NodeId) -> bool:
        """False: home's identity is another one since, and no member of this cluster."""
        if not self.node:
            return self.role is not Role.VOTER or node in self.voters
        return node == self.node

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
