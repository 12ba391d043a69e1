"""Two clusters of one name that meet: ask to be adopted, dissolve, move, and bring along.

Owns the steps and their order, so that a death between any two leaves one cluster or the other and
the step is taken again: the winner's `Adopt` is committed before the answer; what the loser had is
in home before `Dissolve` is proposed; the cluster file names the winner after it has admitted us;
what was brought is removed from home only when it is in the winner's log. The rules, and why a
stranger takes over nothing, are in core.state.merging. Owned by peer.membership.membership.

Any member can do the loser's part: it asks over the join channel and proposes like everybody. By
itself only the leader does, so that it is done once.

Not to be confused with `core.state.merging`, which holds the rules, nor with
`core.state.changes.merging`, which applies the commands.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from aivailable.advice import ADMIT
from aivailable.core.ids import SHORT_CHARS, ClusterId, NodeId, short
from aivailable.core.state.commands import Adopt, Dissolve
from aivailable.core.state.crossing import Arrival, Departure, Way, may_come, may_go
from aivailable.core.state.founding import ClusterFacts
from aivailable.core.state.levels import lowest
from aivailable.core.state.merging import (
    ADOPTED_MAX,
    Apart,
    Meeting,
    adopted,
    facts_of,
    is_unused,
    may_end_in,
    meet,
    wins,
)
from aivailable.core.state.records import Dissolved, SuccessorAddress
from aivailable.errors import AivailableError, LinkError, ProposalRejected, RequestError
from aivailable.peer.joining.applicant import Applicant
from aivailable.peer.joining.entry import welcome
from aivailable.peer.membership.carryover import Carryover, CarryoverEntry
from aivailable.peer.membership.yielding import KEY_REFUSALS
from aivailable.peer.ports import Ports, Sighting
from aivailable.peer.session import ClusterSession
from aivailable.wire.join import JoinAnswer, JoinOffer, MergeWish

log = logging.getLogger("aivailable.merging")

LOOK_PERIOD_S = 5.0
CLUSTERS_MAX = 4
"""Other clusters of our name that are looked at in one round."""
DISSOLVE_DEADLINE_S = 10.0
ADOPT_DEADLINE_S = 8.0
LINGER_S = 3.0
"""The leader of an ended cluster stays this long, for the others to learn that it has ended."""
SUCCESSORS_MAX = 8
Address = tuple[str, int]
Hearing = Callable[[], Awaitable[Sequence[Sighting]]]


class Merging:
    """`advice` says what an operator could type while another cluster of our name is here."""

    def __init__(
        self,
        ports: Ports,
        applicant: Applicant,
        tell: Callable[[str], None],
        *,
        keyed: bool,
    ) -> None:
        """`keyed`: the join client has a join key, and proves it where a merge is asked for."""
        self._ports = ports
        self._applicant = applicant
        self._tell = tell
        self._keyed = keyed
        self._carryover = CarryoverEntry(ports, tell)
        self._looked_s = -LOOK_PERIOD_S
        self._ended_s: float | None = None
        self.advice = ""

    # --- the loser's side

    async def look(self, session: ClusterSession, heard: Hearing) -> None:
        """Meet the clusters of our name, and end in one where that happens by itself."""
        now_s, state = self._ports.clock.monotonic(), session.state
        if now_s - self._looked_s < LOOK_PERIOD_S or state.dissolved is not None:
            return
        self._looked_s = now_s
        advice = ""
        if not state.pristine or not session.window.admits(state.window):
            for address, offer in await self._others(session, await heard()):
                met = meet(self._meeting(session, offer))
                if isinstance(met, Apart):
                    advice = advice or met.advice
                elif session.raft.is_leader:
                    advice = advice or await self._end_unasked(session, address, offer)
        if advice != self.advice and advice:
            log.warning("%s", advice)
        self.advice = advice

    async def _end_unasked(
        self, session: ClusterSession, address: Address, offer: JoinOffer
    ) -> str:
        """End in the other cluster by ourselves. Returns what a person can do about a refusal."""
        into = short(offer.cluster_id)
        try:
            await self._end_in(session, address, offer, "merge")
        except RequestError as error:
            log.info("not merged into %s: %s", into, error)
            if error.code in KEY_REFUSALS:
                return f"another cluster of this name ({into}) does not take this one in: {error}"
        except (AivailableError, OSError) as error:
            log.info("not merged into %s: %s", into, error)
        return ""

    async def order(
        self, session: ClusterSession, into: ClusterId, actor: str, heard: Hearing
    ) -> None:
        """An operator ends this cluster in the one that it names. Raises RequestError,
        ProposalError."""
        if len(into) < SHORT_CHARS:
            raise RequestError(400, "invalid_value", "name the other cluster by its whole id")
        for address, offer in await self._others(session, await heard(), into):
            try:
                await self._end_in(session, address, offer, actor, ordered=True)
            except LinkError as error:
                raise RequestError(503, "unreachable", str(error), retry_after_s=5) from error
            return
        raise RequestError(
            404,
            "unknown_cluster",
            f"no cluster {into!r} of this name is heard; is a node of it up?",
        )

    def _meeting(self, session: ClusterSession, offer: JoinOffer) -> Meeting:
        return Meeting(
            mine=facts_of(session.state, session.file.cluster_id),
            other=ClusterFacts(offer.cluster_id, offer.members, offer.pristine),
            window_open=session.window.admits(session.state.window),
            other_open=offer.window_open,
            unused=is_unused(session.state),
            keyed=self._keyed and offer.keyed,
        )

    async def _others(
        self, session: ClusterSession, sightings: Sequence[Sighting], wanted: ClusterId = ""
    ) -> list[tuple[Address, JoinOffer]]:
        """One node each of the other clusters of our name that stay: not of those that ended
        here, nor of a pristine one, which gives itself up unasked."""
        own, found = session.file.cluster_id, dict[ClusterId, tuple[Address, JoinOffer]]()
        ended = [
            ended_cluster.cluster_id
            for ended_cluster in session.state.tombstones
            if ended_cluster.merged
        ]
        for sighting in sightings:
            prefix = sighting.cluster_prefix
            mine = (
                not prefix or own.startswith(prefix) or sighting.cluster_name != session.file.name
            )
            if mine or not wanted.startswith(prefix[: len(wanted)]) or len(found) >= CLUSTERS_MAX:
                continue
            if any(known.startswith(prefix) for known in (*found, *ended)):
                continue
            for address in sighting.addresses:
                try:
                    offer = await self._ports.join_client.look(address)
                except LinkError as error:
                    log.debug("looking at %s: %s", address, error)
                    continue
                named = offer.cluster_name == session.file.name
                asked = offer.cluster_id.startswith(wanted) and offer.cluster_id != own
                if named and asked and (wanted or not offer.pristine or offer.members > 1):
                    found[offer.cluster_id] = address, offer
                    break
        return [found[key] for key in sorted(found)]

    async def _end_in(
        self,
        session: ClusterSession,
        address: Address,
        offer: JoinOffer,
        actor: str,
        *,
        ordered: bool = False,
    ) -> None:
        """Be adopted, then dissolve. Raises RequestError, LinkError, ProposalError."""
        met = meet(self._meeting(session, offer), ordered=ordered)
        if isinstance(met, Apart):
            raise RequestError(409, "other_side", met.advice)
        state, own = session.state, session.file.cluster_id
        members = tuple(sorted(state.members))
        problem = may_end_in(state, own, offer.cluster_id)
        if not problem and len(members) > ADOPTED_MAX:
            problem = f"a cluster of at most {ADOPTED_MAX} members can end in another"
        if problem or self._carryover.busy(session):
            raise RequestError(409, "not_now", problem or "an earlier merge is not done yet")
        level = lowest(state.members.values())
        wish = MergeWish(own, session.file.name, members, state.pristine, level)
        request = replace(self._applicant.request(), merge=wish, to=offer.node)
        answer = await self._ports.join_client.join(address, request)
        if answer.code:
            raise RequestError(409, answer.code, answer.message)
        if answer.cluster_id != offer.cluster_id:
            raise LinkError("another cluster answers there now")
        Carryover.of(state, own, offer.cluster_id).save(self._ports.home)
        refuges = tuple(
            SuccessorAddress(seat.node, seat.addresses[:4], seat.link_port) for seat in answer.seats
        )[:SUCCESSORS_MAX]
        self._tell(f"merging cluster {short(own)} into {short(offer.cluster_id)}")
        try:
            await session.proposer.propose(
                Dissolve(offer.cluster_id, answer.cluster_name, members, refuges),
                actor=actor,
                reason="merge",
                deadline_s=DISSOLVE_DEADLINE_S,
            )
        except ProposalRejected:
            if session.state.dissolved is None:  # Else another has done it, with the same words.
                Carryover.forget(self._ports.home)
            raise

    async def follow(self, session: ClusterSession) -> JoinAnswer | None:
        """Once our cluster has ended: the admission to where it ended, None until there is one."""
        ended = session.state.dissolved
        if ended is None:
            self._ended_s = None
            return None
        now_s = self._ports.clock.monotonic()
        self._ended_s = now_s if self._ended_s is None else self._ended_s
        if session.raft.is_leader and now_s - self._ended_s < LINGER_S:
            return None
        self._carryover.pack(session, ended)
        self.advice = f"this cluster has ended in {short(ended.into)}: no node of that one answers"
        for node, addresses in self._places(session, ended):
            for address in addresses:
                try:
                    answer = await self._enter_at(session, ended, node, address)
                except LinkError as error:
                    log.debug("going to %s: %s", short(node), error)
                    continue
                if answer is not None:
                    self.advice = ""
                    return answer
        return None

    def _places(
        self, session: ClusterSession, ended: Dissolved
    ) -> list[tuple[NodeId, tuple[Address, ...]]]:
        """Nodes of the other cluster as our log names them, and our own that are there already."""
        heard = {entry.short_node: entry.addresses for entry in self._ports.discovery.sightings()}
        known = [
            (
                successor.node,
                tuple((address, successor.link_port) for address in successor.addresses),
            )
            for successor in ended.refuges
        ]
        known += [(contact.node, contact.addresses) for contact in session.contacts()]
        return [
            (node, tuple(dict.fromkeys((*heard.get(short(node), ()), *addresses))))
            for node, addresses in known
        ]

    async def _enter_at(
        self, session: ClusterSession, ended: Dissolved, node: NodeId, address: Address
    ) -> JoinAnswer | None:
        offer = await self._ports.join_client.look(address)
        theirs = offer.node == node and offer.cluster_id == ended.into
        if not theirs or not may_go(Departure(Way.FOLLOWING)):
            return None
        request = replace(self._applicant.request(), former=session.file.cluster_id, to=node)
        answer = await self._ports.join_client.join(address, request)
        if answer.code:
            log.warning("%s does not let us in yet: %s", short(node), answer.message)
            return None
        return answer

    async def bring(self, session: ClusterSession) -> None:
        """Enter what our ended cluster had into the one that we are in now."""
        await self._carryover.bring(session)

    # --- the winner's side

    async def adopt(
        self, session: ClusterSession, wish: MergeWish, node: NodeId, *, by_key: bool
    ) -> JoinAnswer:
        """A member of another cluster asks that it may end in ours."""
        state, own = session.state, session.file.cluster_id
        theirs = ClusterFacts(wish.cluster_id, len(wish.members), wish.pristine)
        if wish.name != session.file.name or wish.cluster_id == own:
            return JoinAnswer("other_cluster", "only clusters of one name are merged")
        if node not in wish.members:
            return JoinAnswer("malformed", "a member asks for its own cluster only")
        if not adopted(state, wish.cluster_id, wish.members):
            if not wins(facts_of(state, own), theirs):
                return JoinAnswer("other_cluster", f"that cluster stays: {short(own)} ends in it")
            if not may_come(Arrival(session.window.admits(state.window), by_key)):
                return JoinAnswer(
                    "window_closed",
                    f"the cluster {short(own)} takes in nobody now; type {ADMIT} on one"
                    " of its members, then merge again",
                )
            serial = None if by_key else state.window.serial
            try:
                await session.proposer.propose(
                    Adopt(wish.cluster_id, wish.name, wish.members, serial),
                    actor="key" if by_key else "window",
                    reason=f"asked by {short(node)}",
                    deadline_s=ADOPT_DEADLINE_S,
                )
            except AivailableError as error:
                return JoinAnswer("busy", f"not taken in: {error}")
        return welcome(own, session.file.name, session.state)
