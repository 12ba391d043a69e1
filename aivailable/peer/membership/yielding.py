"""How a pristine cluster of one ends in another: looks there, and asks to be let in.

Owns the patience with a cluster that should come to us but does not; `core.state.founding.gives_up`
says who should. It must not move this node: peer.membership.membership, which owns and calls it,
does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from aivailable.core.ids import ClusterId, short
from aivailable.core.state.crossing import Departure, may_go
from aivailable.core.state.founding import ClusterFacts, gives_up
from aivailable.errors import LinkError
from aivailable.peer.joining.applicant import Applicant
from aivailable.peer.ports import Ports, Sighting
from aivailable.wire.join import JoinAnswer, JoinOffer

log = logging.getLogger("aivailable.membership")

KEY_REFUSALS: Final = ("bad_proof", "no_key")
SEED_PATIENCE_S: Final = 8.0
"""A seed may not know of us: it was named here, perhaps not the other way round. So long is it
given to come, far longer than one that does know takes."""
SEEN_MAX: Final = 16


class Yielding:
    """One for each node."""

    def __init__(
        self,
        ports: Ports,
        applicant: Applicant,
        tell_once: Callable[[str, str], None],
    ) -> None:
        """`tell_once(text, short_node)` tells a person what comes back again and again."""
        self._ports = ports
        self._applicant = applicant
        self._tell_once = tell_once
        self._seen_s: dict[ClusterId, float] = {}
        """Since when a seed shows that cluster, which should come to ours."""

    async def look(
        self,
        mine: ClusterFacts,
        leaving: Departure,
        name: str,
        sighting: Sighting,
        address: tuple[str, int],
    ) -> JoinOffer | None:
        """Whom we should go to; None when we stay. `name` is our cluster's. Raises LinkError."""
        if not may_go(leaving):
            return None
        offer = await self._ports.join_client.look(address)
        if offer.cluster_name != name or not self._yields(mine, offer, sighting):
            return None
        return offer

    async def ask(
        self, leaving: Departure, offer: JoinOffer, address: tuple[str, int]
    ) -> JoinAnswer | None:
        """The admission there; None when we are not let in."""
        if not may_go(leaving):
            return None
        try:
            answer = await self._ports.join_client.join(address, self._applicant.request())
        except LinkError as error:
            log.info("join at %s: %s", address, error)
            return None
        if answer.code == "":
            return answer
        log.info("not given up: %s %s", answer.code, answer.message)
        if answer.code in ("version", *KEY_REFUSALS):
            self._tell_once(
                f"{offer.cluster_name!r} ({short(offer.cluster_id)}) stays apart: {answer.message}",
                short(offer.node),
            )
        return None

    def _yields(self, mine: ClusterFacts, offer: JoinOffer, sighting: Sighting) -> bool:
        other = ClusterFacts(offer.cluster_id, offer.members, offer.pristine)
        if gives_up(mine, other):
            return True
        if sighting.instance or not gives_up(other, mine):
            return False
        now_s = self._ports.clock.monotonic()
        since_s = self._seen_s.setdefault(other.cluster_id, now_s)
        while len(self._seen_s) > SEEN_MAX:
            del self._seen_s[next(iter(self._seen_s))]
        return mine.pristine and mine.members == 1 and now_s - since_s >= SEED_PATIENCE_S
