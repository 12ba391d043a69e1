"""How a member that was off finds the cluster that its own has ended in.

After a merge or a recovery the old members answer with another cluster's id. A member that knows no
leader asks at their addresses, and goes where they are if they say that its cluster ended there.

One whose cluster lives on without it was taken out while it was off, and is told so: that is shown,
and changes nothing here.

Nobody else is believed: an answer counts only from a node that our own copy of the state names as a
member, proved by its certificate in the very connection that admits us. And nobody is asked while a
leader is known: then our cluster lives, whoever has left it. Owned by peer.membership.membership.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from aivailable.advice import LEAVE
from aivailable.core.ids import NodeId, short
from aivailable.core.state.crossing import Departure, Way, may_go
from aivailable.core.state.state import State
from aivailable.errors import LinkError
from aivailable.peer.joining.applicant import Applicant
from aivailable.peer.ports import Ports
from aivailable.peer.session import ClusterSession
from aivailable.wire.join import JoinAnswer

log = logging.getLogger("aivailable.rejoining")

REMOVED = "removed"
"""The code of that answer."""
REMOVED_FILE = "removed"
"""In home: the id of the node of which a member said so."""
REJOIN_AFTER_S = 10.0
"""This long without a leader before the others are asked; and between two rounds."""


class Rejoining:
    """Call `find` now and then."""

    def __init__(self, ports: Ports, applicant: Applicant) -> None:
        self._ports = ports
        self._applicant = applicant
        self._asked_s = -REJOIN_AFTER_S
        self.removed = ""
        """What a member of our cluster says: that we were taken out of it."""

    async def find(self, session: ClusterSession) -> JoinAnswer | None:
        """The admission to where our cluster has ended; None when nobody of it says so."""
        now_s = self._ports.clock.monotonic()
        lost_s = session.leaderless_ms() / 1000
        if not lost_s:
            self.removed = ""
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
        if offer.node != node or not may_go(Departure(Way.REJOINING)):
            return None
        request = replace(self._applicant.request(), former=own, to=node)
        answer = await self._ports.join_client.join(address, request)
        if offer.cluster_id == own:  # It lives, and does not link to us: asked why.
            self.removed = answer.message if answer.code == REMOVED else ""
            return None
        if answer.code:
            log.info("%s is in %s: %s", short(node), short(offer.cluster_id), answer.message)
            return None
        return answer


def asked_why(state: State, node: NodeId) -> JoinAnswer:
    """To a node that takes itself for a member of this cluster, and is not linked."""
    if node in state.members:
        return JoinAnswer("known", f"{short(node)} is a member; its links will come")
    return JoinAnswer(
        REMOVED,
        f"{short(node)} is not a member of this cluster any more. Type {LEAVE} on that"
        " machine, then it can join again",
    )
