"""This node as it asks another cluster to let it in.

Owns what the request says of us; the join client signs it for the server that it asks. Made by
`peer.membership.membership`, used by all who ask to come in: to join, to yield, to merge, to come
back.
"""

from __future__ import annotations

from aivailable.core.state.levels import LEVEL
from aivailable.peer.ports import PeerConfig, Ports
from aivailable.wire.join import JoinRequest
from aivailable.wire.limits import PROTO_MAX, PROTO_MIN


class Applicant:
    """`key_hash`: of this node's admin key, which stays valid where it is let in."""

    def __init__(self, config: PeerConfig, ports: Ports, key_hash: str) -> None:
        self._config = config
        self._ports = ports
        self._key_hash = key_hash

    def request(self) -> JoinRequest:
        """As of now: addresses and ports change."""
        return JoinRequest(
            certificate=self._ports.identity.certificate,
            signature=b"",
            name=self._config.name,
            addresses=self._ports.discovery.addresses(),
            link_port=self._ports.endpoints.link_port,
            api_port=self._ports.endpoints.api_port,
            version=self._config.version,
            proto_min=PROTO_MIN,
            proto_max=PROTO_MAX,
            feature_max=LEVEL,
            instance_id=self._ports.identity.instance_id,
            key_hashes=(self._key_hash,),
        )
