"""Who is around: what mDNS brings, and the configured seeds asked as if it had brought them.

Decides nothing.
"""

from __future__ import annotations

import logging

from aivailable.core.ids import short
from aivailable.errors import LinkError
from aivailable.peer.ports import Ports, Sighting

log = logging.getLogger("aivailable.membership")


async def heard(ports: Ports, seeds: tuple[tuple[str, int], ...]) -> tuple[Sighting, ...]:
    """All sightings, those of the seeds last."""
    found = list(ports.discovery.sightings())
    for address in seeds:
        try:
            offer = await ports.join_client.look(address)
        except LinkError as error:
            log.info("seed %s:%d: %s", *address, error)
            continue
        found.append(
            Sighting(
                short_node=short(offer.node),
                instance="",
                cluster_prefix=short(offer.cluster_id),
                cluster_name=offer.cluster_name,
                window_open=offer.window_open,
                api_port=0,
                addresses=(address,),
            )
        )
    return tuple(found)
