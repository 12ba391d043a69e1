"""How a member that was off finds the cluster that its own has ended in.

After a merge or a recovery the old members answer with another cluster's id. A member that knows no
leader asks at their addresses, and goes where they are if they say that its cluster ended there.

Nobody else is believed: an answer counts only from a node that our own copy of the state names as a
member, proved by its certificate in the very connection that admits us. And nobody is asked while a
leader is known: then our cluster lives, whoever has left it. Owned by peer.membership.membership.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from aivailable.core.ids import short
from aivailable.core.state.crossing import Departure, Way, may_go
from aivailable.errors import LinkError
from aivailable.peer.joining.applicant import Applicant
from aivailable.peer.ports import Ports
from aivailable.peer.session import ClusterSession
from aivailable.wire.join import JoinAnswer

log = logging.getLogger("aivailable.rejoining")

REJOIN_AFTER_S = 10.0
"""This long without a leader before the others are asked; and between two rounds."""


class Rejoining:
    """Call `find` now and then."""

    def __init__(self, ports: Ports, applicant: Applicant) -> None:
        self._ports = ports
        self._applicant = applicant
        self._asked_s = -REJOIN_AFTER_S

    async def find(self, session: ClusterSession) -> JoinAnswer | None:
        """The admission to where our cluster has ended; None when nobody of it says so."""
        now_s = self._ports.clock.monotonic()
        lost_s = session.leaderless_ms() / 1000
        if lost_s < REJOIN_AFTER_S or now_s - self._asked_s < REJOIN_AFTER_S:
            return None
        self._asked_s = now_s
        for contact in session.contacts():
            for address in contact.addresses:
                try:
                    answer = await self._ask(session, contact.node, address)
                except LinkError as error:
                    log.debug("looking for %s: %s", short(contact.node), error)
                    continue
                if answer is not None and session.raft.leader is None:
                    return answer
        return None

    async def _ask(
        self, session: ClusterSession, node: str, address: tuple[str, int]
    ) -> JoinAnswer | None:
        own = session.file.cluster_id
        offer = await self._ports.join_client.look(address)
        if offer.node != node or offer.cluster_id == own or not may_go(Departure(Way.REJOINING)):
            return None
        request = replace(self._applicant.request(), former=own, to=node)
        answer = await self._ports.join_client.join(address, request)
        if answer.code:
            log.info("%s is in %s: %s", short(node), short(offer.cluster_id), answer.message)
            return None
        return answer
