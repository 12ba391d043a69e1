"""How a node comes to belong to a cluster: resume, look around, join, found, or give itself up.

`core.state.founding` decides; this class performs it with discovery and the join channel, and
answers nodes that ask to join. It makes and drops the peer's session.

Not to be confused with `raft.membership`, the list of voters in the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from aivailable.advice import ADMIT
from aivailable.core.ids import ClusterId, NodeId, cluster_id, key_hash, short
from aivailable.core.serving.status import WaitingStatus
from aivailable.core.state.commands import Admit
from aivailable.core.state.crossing import Arrival, Departure, Way, may_come, may_go
from aivailable.core.state.founding import (
    ClusterFacts,
    FoundCluster,
    Join,
    Seeking,
    WaitFor,
    decide,
)
from aivailable.core.state.merging import is_unused, listing
from aivailable.core.state.records import ApiKey, Role, Scope
from aivailable.core.state.removal import removed_for_good
from aivailable.errors import AivailableError, LinkError, ProposalError, RequestError
from aivailable.peer.joining.applicant import Applicant
from aivailable.peer.joining.cluster_file import CLUSTER_FILE, ClusterFile, lay_aside
from aivailable.peer.joining.entry import file_of, keys_of, member_of, other_version, welcome, why
from aivailable.peer.joining.refused_joiners import RefusedJoiners
from aivailable.peer.joining.sightings import heard
from aivailable.peer.joining.silent_nodes import SilentNodes
from aivailable.peer.membership.announcement import announcement
from aivailable.peer.membership.merging import Merging
from aivailable.peer.membership.rejoining import REMOVED, REMOVED_FILE, Rejoining, asked_why
from aivailable.peer.membership.yielding import KEY_REFUSALS, Yielding
from aivailable.peer.ports import KeyCheck, PeerConfig, Ports, Sighting
from aivailable.peer.session import ClusterSession
from aivailable.wire.join import JoinAnswer, JoinOffer, JoinRequest
from aivailable.wire.limits import PROTO_MAX, PROTO_MIN

T = TypeVar("T")

log = logging.getLogger("aivailable.membership")

LOOK_JITTER_S = 1.0
ASK_PERIOD_S = 3.0
FOUND_LOOK_S = 10.0
"""For the log of a cluster of one to be read and led by us."""
PRISTINE_PERIOD_S = 2.0
ADMIT_DEADLINE_S = 8.0
TOLD_MAX = 64


class Membership:
    """Exactly one session, or none. `open_session` starts one; `close_session` drops it."""

    def __init__(
        self,
        config: PeerConfig,
        ports: Ports,
        admin_key: str,
        open_session: Callable[[ClusterFile], Awaitable[ClusterSession]],
        close_session: Callable[[], Awaitable[None]],
        tell: Callable[[str], None],
    ) -> None:
        self._config = config
        self._ports = ports
        self._node = ports.identity.node
        self._admin_key = admin_key
        self._key_hash = key_hash(admin_key)
        self._open_session = open_session
        self._close_session = close_session
        self._tell = tell
        self._session: ClusterSession | None = None
        self._silent = SilentNodes(ports)
        self._misfits: set[str] = set()
        """Short ids of nodes with another join key than ours, until all of our name have."""
        self._told: set[str] = set()
        self._refused_joiners = RefusedJoiners(ports.clock, tell)
        self._applicant = Applicant(config, ports, self._key_hash)
        self._rejoining = Rejoining(ports, self._applicant)
        self._yielding = Yielding(ports, self._applicant, self._tell_once)
        self.merging = Merging(ports, self._applicant, tell, keyed=config.keyed)
        self._giving_up = False
        self._admitting = 0
        self.phase = "seeking"
        self.advice = ""

    async def run(self) -> None:
        """Become a member, then watch whether this cluster should give itself up."""
        file = ClusterFile.load(self._ports.home)
        if file is not None and not file.is_of(self._node):
            lay_aside(file, self._ports, self._tell)
            file = None
        if file is not None:
            self._tell(f"resuming cluster {file.name!r} ({short(file.cluster_id)})")
            session = await self._enter(file)
            if file.voters == (self._node,) and not file.seats:
                await self._ensure_founded(session)
        else:
            await self._seek()
        while True:
            await self._wait_for_news(PRISTINE_PERIOD_S)
            if self._session is not None:
                self._session.addresses_changed()
                await self._consider_giving_up(self._session)
            try:
                await self._see_others()
            except OSError as error:
                log.error("the disk does not take a change of cluster: %s", error)

    # --- seeking

    async def _seek(self) -> None:
        """Look around until a cluster has us."""
        self._tell(f"looking for a cluster named {self._config.cluster_name!r} …")
        clock, rng = self._ports.clock, self._ports.randomness.random
        started_s = clock.monotonic()
        look_s = self._config.look_s + rng.random() * LOOK_JITTER_S
        await self.announce()
        while self._session is None:
            sightings = await self._heard()
            now_s = clock.monotonic()
            gone = self._silent.gone()
            seek = Seeking(
                short(self._node), self._config.cluster_name, started_s, look_s, now_s, gone
            )
            untried = self._untried(sightings, gone)
            if not untried:
                self._misfits.clear()
            match decide(seek, untried or sightings):
                case FoundCluster():
                    await self._found()
                case Join(sighting=sighting):
                    if await self._ask_to_join(sighting):
                        return
                    if sighting.short_node in self._misfits and self._untried(sightings, gone):
                        continue
                    if sighting.short_node in self._silent.gone():
                        await self._silent.look_around(sightings, self._config.cluster_name)
                        continue
                    await self._wait_for_news(ASK_PERIOD_S * (0.5 + rng.random()))
                case WaitFor(reason=reason, until_s=until_s):
                    log.debug("%s", reason)
                    await self._wait_for_news(max(0.05, until_s - now_s))

    def _untried(
        self, sightings: tuple[Sighting, ...], gone: tuple[str, ...]
    ) -> tuple[Sighting, ...]:
        """Without the nodes that our join key did not fit: there may be several clusters of one
        name. Empty when no founded one would be left, for then none must look as if unseen."""
        rest = tuple(one for one in sightings if one.short_node not in self._misfits)
        named = self._config.cluster_name
        founded = any(
            one.cluster_prefix and one.cluster_name == named and one.short_node not in gone
            for one in rest
        )
        return rest if founded else ()

    async def _heard(self) -> tuple[Sighting, ...]:
        return await heard(self._ports, self._config.seeds)

    async def _found(self) -> None:
        name = self._config.cluster_name
        file = ClusterFile(
            cluster_id=cluster_id(self._ports.randomness.token_bytes(16)),
            name=name,
            role=Role.VOTER,
            voters=(self._node,),
        )
        session = await self._enter(file)
        await self._ensure_founded(session)
        self._tell(f"founded cluster {name!r} ({short(file.cluster_id)})")
        self._tell(f"admin key, shown once and kept in home: {self._admin_key}")
        await self.announce()

    async def _ensure_founded(self, session: ClusterSession) -> None:
        """Commit the first command, unless it is in the log: also after a death between making
        the cluster's file and that command, or a disk too slow for one deadline."""
        while self._session is session:
            try:
                await session.raft.barrier(FOUND_LOOK_S)
                if session.state.cluster is not None:
                    return
                await session.found(self._own_key("founder"))
            except ProposalError as error:
                log.warning("not founded yet: %s", error)
                await self._wait_for_news(ASK_PERIOD_S)

    async def _ask_to_join(self, sighting: Sighting) -> bool:
        """Ask to be let in at each of the sighted addresses; True when we are a member."""
        for address in sighting.addresses:
            try:
                request = self._applicant.request()
                if not may_go(Departure(Way.SEEKING)):
                    return False
                answer = await self._ports.join_client.join(address, request)
            except LinkError as error:
                log.info("join at %s: %s", address, error)
                continue
            if answer.code == "":
                await self._enter(file_of(answer, self._node))
                self._tell(f"joined cluster {answer.cluster_name!r} ({short(answer.cluster_id)})")
                return True
            self._refused(sighting, answer)
            return False
        self._silent.remember(sighting.short_node)
        return False

    def _refused(self, sighting: Sighting, answer: JoinAnswer) -> None:
        if answer.code in KEY_REFUSALS:
            self._misfits.add(sighting.short_node)
        if answer.code in ("window_closed", "version", REMOVED, *KEY_REFUSALS):
            self.phase = "removed" if answer.code == REMOVED else "waiting"
        self.advice = answer.message
        self._tell_once(
            f"{sighting.cluster_name!r} ({sighting.cluster_prefix}): {answer.message}",
            sighting.short_node,
        )

    def _tell_once(self, text: str, short_node: str) -> None:
        """What comes back at every try, and at each node of that cluster."""
        if text in self._told:
            return
        if len(self._told) >= TOLD_MAX:
            self._told.clear()
        self._told.add(text)
        self._tell(text)
        log.warning("refused by %s: %s", short_node, text)

    async def _enter(self, file: ClusterFile) -> ClusterSession:
        file = replace(file, node=self._node)
        file.save(self._ports.home)
        self.advice = ""  # Links may be refused, and say why, before the session is open.
        self._session = await self._open_session(file)
        self.phase = "member"
        await self.announce()
        return self._session

    async def _wait_for_news(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._ports.discovery.changed()
        except TimeoutError:
            return

    # --- giving up

    async def _consider_giving_up(self, session: ClusterSession) -> None:
        """A pristine cluster of one dissolves into another of its name."""
        if not self._may_give_up(session):
            return
        for sighting in await self._heard():
            prefix = sighting.cluster_prefix
            same = not prefix or session.file.cluster_id.startswith(prefix)
            if sighting.cluster_name != self._config.cluster_name or same:
                continue
            if sighting.short_node in self._silent.gone():
                continue
            if await self._give_up_for(session, sighting):
                return

    async def _give_up_for(self, session: ClusterSession, sighting: Sighting) -> bool:
        """True when nobody else is to be looked at."""
        for address in sighting.addresses:
            if not self._may_give_up(session):
                return True
            mine, leaving = self._facts(session), self._leaving(session)
            try:
                offer = await self._yielding.look(
                    mine, leaving, session.file.name, sighting, address
                )
            except LinkError as error:
                log.debug("looking at %s: %s", address, error)
                self._silent.remember(sighting.short_node)
                continue
            if offer is None or not self._may_give_up(session):
                continue
            # Nobody is admitted meanwhile: a newcomer would be left behind in a dead cluster.
            self._giving_up = True
            try:
                answer = await self._yielding.ask(self._leaving(session), offer, address)
                if answer is not None:
                    self._tell(f"giving up cluster {short(mine.cluster_id)}")
                    await self._go(answer)
                    return True
            finally:
                self._giving_up = False
        return False

    def _may_give_up(self, session: ClusterSession) -> bool:
        state = session.state
        lives = state.cluster is not None and state.dissolved is None
        free = lives and state.pristine and not self._admitting
        return free and may_go(self._leaving(session))

    def _leaving(self, session: ClusterSession) -> Departure:
        """What a cluster of one would give up unasked."""
        state = session.state
        return Departure(
            Way.YIELDING,
            unused=is_unused(state),
            window_open=session.window.admits(state.window),
            keyed=self._config.keyed,
        )

    # --- from one cluster into another

    async def exclusively(self, change: Callable[[], Awaitable[T]]) -> T:
        """Run what moves this node; nobody is admitted meanwhile. Raises RequestError 409 while
        another such change is under way."""
        if self._giving_up or self._admitting:
            raise RequestError(409, "not_now", "members come or go just now; try again")
        self._giving_up = True
        try:
            return await change()
        finally:
            self._giving_up = False

    async def move(self, file: ClusterFile) -> ClusterSession:
        """Leave our cluster's log behind, set aside, for another cluster. Raises OSError."""
        old, self._session = self._session, None
        await self._close_session()
        try:
            session = await self._enter(file)
        except (OSError, AivailableError):
            if old is not None:
                await self._enter(old.file)  # The disk does not take it: all stays as it was.
            raise
        if old is not None:
            self._ports.drop_raft_store(old.file.cluster_id)
        return session

    async def _go(self, answer: JoinAnswer) -> None:
        await self.move(file_of(answer, self._node))
        self._tell(f"joined cluster {answer.cluster_name!r} ({short(answer.cluster_id)})")

    async def _see_others(self) -> None:
        """Go where our cluster has ended; else meet other clusters. Raises OSError."""
        if self._session is not None:
            await self._find_our_way(self._session)
        if self._session is not None:
            await self.merging.bring(self._session)
        if self._session is not None and not self._giving_up:
            await self.merging.look(self._session, self._heard)

    async def merge(self, into: ClusterId, actor: str) -> None:
        """End our cluster in another one. Raises RequestError, ProposalError."""
        session = self._session
        if session is None:
            raise RequestError(409, "not_a_member", "this node has no cluster to merge")
        await self.exclusively(lambda: self.merging.order(session, into, actor, self._heard))

    def what_to_do(self) -> str:
        """What needs a person, the most pressing first; "" when nothing does."""
        return self.advice or self.merging.advice or self._refused_joiners.advice()

    async def _find_our_way(self, session: ClusterSession) -> None:
        """Our cluster may have ended in another while we were off."""
        before = self._rejoining.removed
        answer = await self.merging.follow(session) or await self._rejoining.find(session)
        if self._rejoining.removed:
            self.told_removed(self._rejoining.removed)
        elif before and self.advice == before:
            self.phase, self.advice = "member", ""
        if answer is not None and self._session is session and not self._giving_up:
            self._tell(f"cluster {short(session.file.cluster_id)} has ended in another")
            await self._go(answer)

    def told_removed(self, advice: str) -> None:
        """A member says that we were taken out; a person may believe it."""
        if self.phase != "removed":
            self._ports.home.save(REMOVED_FILE, self._node.encode())
        self.phase, self.advice = "removed", advice

    def _facts(self, session: ClusterSession) -> ClusterFacts:
        state = session.state
        return ClusterFacts(session.file.cluster_id, max(1, len(state.members)), state.pristine)

    async def forget(self) -> None:
        """We have left, or were removed: nothing of the cluster stays in home."""
        session, self._session = self._session, None
        if session is None:
            return
        await self._close_session()
        self._ports.home.remove(CLUSTER_FILE)
        self._ports.drop_raft_store(session.file.cluster_id)
        self.phase = "removed"

    # --- answering those who ask to join

    def offer(self, nonce: bytes) -> JoinOffer | None:
        """What any stranger may know; nothing while we have no cluster."""
        session = self._session
        if session is None or session.state.cluster is None:
            return None
        facts = self._facts(session)
        return JoinOffer(
            nonce=nonce,
            node=self._node,
            cluster_id=facts.cluster_id,
            cluster_name=session.file.name,
            members=facts.members,
            pristine=facts.pristine,
            window_open=session.window.admits(session.state.window),
            proto_min=PROTO_MIN,
            proto_max=PROTO_MAX,
        )

    async def admit(
        self, request: JoinRequest, node: NodeId, key: KeyCheck = KeyCheck.NONE
    ) -> JoinAnswer:
        """A verified stranger asks to be let in. A proved key admits at any time; a wrong one
        never does, not through an open window either: its holder meant another cluster."""
        session = self._session
        if session is None or session.state.cluster is None or self._giving_up:
            return JoinAnswer("seeking", "this node has no cluster yet; try again in a moment")
        if misfit := other_version(request, session.state):
            return JoinAnswer("version", misfit)
        if refusal := removed_for_good(session.state, node):
            return JoinAnswer(REMOVED, refusal)
        if request.former == session.file.cluster_id:
            return asked_why(session.state, node)
        if key is KeyCheck.WRONG:
            self._refused_joiners.remember(node, request, wrong_key=True)
            return JoinAnswer(
                "bad_proof",
                f"the cluster {session.file.name!r} has another join key: start this node with"
                " that cluster's key, without one while its join window is open, or with a"
                " --cluster name of its own",
            )
        if session.state.dissolved is not None:
            into = session.state.dissolved.into
            return JoinAnswer("merged_into", f"this cluster has ended in {short(into)}", into)
        if request.merge is not None:
            by_key = key is KeyCheck.PROVED
            return await self.merging.adopt(session, request.merge, node, by_key=by_key)
        window = session.state.window
        known = node in session.state.members
        by_key = key is KeyCheck.PROVED
        listed = listing(session.state, node, request.former)
        if request.former and not known and listed is None:
            return JoinAnswer(
                "other_cluster", f"{short(request.former)} has not ended in this cluster"
            )
        expected = known or listed is not None
        if not may_come(Arrival(session.window.admits(window), by_key, expected)):
            self._refused_joiners.remember(node, request)
            return JoinAnswer(
                "window_closed",
                f"the cluster {session.file.name!r} admits nobody now; type {ADMIT}"
                " on one of its members",
            )
        self._refused_joiners.forget(node)
        self._admitting += 1
        try:
            await session.proposer.propose(
                Admit(
                    member=member_of(request, node),
                    keys=keys_of(request, self._ports.clock.wall_ms()),
                    window_serial=None if known or by_key or listed else window.serial,
                    tombstone="" if known or by_key or listed is None else listed.cluster_id,
                ),
                actor="key" if by_key else "window",
                reason=why(known=known, by_key=by_key, listed=listed, serial=window.serial),
                deadline_s=ADMIT_DEADLINE_S,
            )
        except AivailableError as error:
            return JoinAnswer("busy", f"not admitted now: {error}")
        finally:
            self._admitting -= 1
        self._tell(f"{request.name} ({short(node)}) joined")
        return welcome(session.file.cluster_id, session.file.name, session.state)

    def _own_key(self, label: str) -> ApiKey:
        return ApiKey(
            self._key_hash[:8],
            self._key_hash,
            Scope.ADMIN,
            f"{label} {self._config.name}",
            self._ports.clock.wall_ms(),
        )

    def waiting(self) -> tuple[WaitingStatus, ...]:
        """Who asked to join lately and waits for an open window."""
        return self._refused_joiners.waiting()

    async def announce(self) -> None:
        """Tell the LAN what we are now."""
        await self._ports.discovery.announce(
            announcement(self._ports, self._config.cluster_name, self._session)
        )
