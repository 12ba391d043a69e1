"""What a node announces of itself on the LAN: a hint, which nobody believes.

Owns the contents. When it is said is `membership`'s business, and how, `peer.joining.discovery`'s.
"""

from __future__ import annotations

from aivailable.core.ids import short
from aivailable.peer.ports import Ports, Sighting
from aivailable.peer.session import ClusterSession


def announcement(ports: Ports, cluster_name: str, session: ClusterSession | None) -> Sighting:
    """As a member of the session's cluster, else as one that seeks."""
    prefix, window_open = "", False
    if session is not None and session.state.cluster is not None:
        prefix = short(session.file.cluster_id)
        window_open = session.window.admits(session.state.window)
    return Sighting(
        short_node=short(ports.identity.node),
        instance=ports.identity.instance_id,
        cluster_prefix=prefix,
        cluster_name=cluster_name,
        window_open=window_open,
        api_port=ports.endpoints.api_port,
        addresses=(),
    )
