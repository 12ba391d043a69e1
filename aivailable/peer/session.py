"""Everything that exists while this node belongs to one cluster, built and taken down as one.

Reads top to bottom as the node's wiring: log, soft state, controller, agent, router. The peer
makes a session when it founds, joins or resumes, and drops it when it leaves or gives itself up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from aivailable.core.cluster.liveness import Liveness
from aivailable.core.ids import NodeId, short
from aivailable.core.state.changes.members import with_news
from aivailable.core.state.commands import Found, Remove, SayAway, UpdateMember
from aivailable.core.state.levels import LEVEL
from aivailable.core.state.records import ApiKey, ClusterSettings, Member, Role
from aivailable.core.state.state import State
from aivailable.errors import AivailableError, ConfigError, ProposalError
from aivailable.peer.control.controller import Controller
from aivailable.peer.control.forwarding import may_forward
from aivailable.peer.control.heartbeat import Heartbeats
from aivailable.peer.control.leaving import Leaving
from aivailable.peer.control.member_list import keep_asking, methods, seen, told
from aivailable.peer.control.pausing import OwnerPause
from aivailable.peer.control.proposals import CommandNumbers, Proposer
from aivailable.peer.control.replicated import ReplicatedState
from aivailable.peer.control.rpc import Rpc
from aivailable.peer.joining.cluster_file import ClusterFile
from aivailable.peer.joining.window import WindowClock
from aivailable.peer.ports import Contact, MessageStream, PeerConfig, Ports
from aivailable.peer.serving.agent import Agent
from aivailable.peer.serving.router import Router
from aivailable.peer.tasks import Tasks
from aivailable.raft.node import RaftNode
from aivailable.wire.generation import Generate
from aivailable.wire.limits import PROTO_MAX, PROTO_MIN
from aivailable.wire.peer import FetchFile, Heartbeat, RaftMessage, RpcCall, RpcReply

log = logging.getLogger("aivailable.session")

FOUND_DEADLINE_S = 10.0
GOODBYE_DEADLINE_S = 1.5
NEWS_RETRY_S = 2.0
VOTE_UNCOUNTED_S = 15.0
SETTLE_S = 3.0
"""What is applied so soon after the start is taken for replay, not for news."""


class ClusterSession:
    """One node's part in one cluster. Its parts read it as a `cluster_view.ClusterView`."""

    def __init__(
        self,
        config: PeerConfig,
        ports: Ports,
        file: ClusterFile,
        sequence: CommandNumbers,
        on_change: Callable[[State, State], None],
    ) -> None:
        self.file = file
        self._config = config
        self._ports = ports
        self._node = ports.identity.node
        self._on_change = on_change
        self._tasks = Tasks(f"session {short(file.cluster_id)}")
        self._was_member = False
        self._founding = False
        self._leaderless_since_s: float | None = None
        self._reopened_s = ports.clock.monotonic()
        self._started_s = ports.clock.monotonic()
        self._store = ports.raft_store(file.cluster_id)
        self.replicated = ReplicatedState(self._changed)
        self.window = WindowClock(ports.clock)
        self.pause = OwnerPause(ports.clock, self._paused)
        self.raft = self._make_raft()
        self.proposer = Proposer(self._node, sequence, ports.clock, self.raft, self.replicated)
        self.agent = Agent(
            config,
            ports,
            self.proposer,
            self,
            self.pause,
            self._agent_changed,
        )
        self.heartbeats = self._make_heartbeats()
        self.router = Router(
            ports,
            self,
            self.agent,
            self._tasks,
            self._asked_for,
        )
        self._leaving = Leaving(
            self, ports.clock, self.raft, self.proposer, ports.links, self._reopen
        )
        self.rpc = Rpc(
            ports.links,
            self._tasks,
            {
                "reopen": self._reopened,
                "pause": self.pause.called,
                **self._leaving.methods(),
                **methods(self),
            },
        )
        self.controller = Controller(
            self,
            ports.clock,
            self.raft,
            self.proposer,
            self.window,
            self._leaving,
            self._reopen,
        )

    def _make_heartbeats(self) -> Heartbeats:
        return Heartbeats(
            self._node,
            self._ports.clock,
            self._ports.links,
            self._config.heartbeat_s,
            self._sample,
            lambda heard: self.window.hear(heard.window_left_s),
        )

    def _make_raft(self) -> RaftNode:
        file, ports = self.file, self._ports
        return RaftNode(
            node_id=self._node,
            voters=file.voters,
            observers=tuple(seat.node for seat in file.seats),
            role=file.role,
            machine=self.replicated,
            link=self,
            store=self._store,
            clock=ports.clock.monotonic,
            rng=ports.randomness.random,
            settings=ports.raft_settings,
            authorize=self._authorize,
            on_change=self._raft_changed,
        )

    @property
    def node(self) -> NodeId:
        return self._node

    @property
    def state(self) -> State:
        return self.replicated.state

    def liveness(self) -> Liveness:
        return self.heartbeats.liveness()

    async def start(self) -> None:
        """Open the log, link to the members known so far, and take part."""
        self.addresses_changed()
        await self.raft.start()
        for node in self._ports.links.connected():
            self.raft.link_up(node)
        self._tasks.spawn(self.heartbeats.run(), "heartbeats")
        self._tasks.spawn(self.controller.run(), "controller")
        self._tasks.spawn(self.agent.run(), "agent")
        self._tasks.spawn(self._tell_news(), "news")
        self._tasks.spawn(
            keep_asking(
                self.rpc,
                self._ports.links,
                self,
                lambda news: self._know(told(self.file, news, self._node)),
            ),
            "roster",
        )

    async def set_aside_log(self) -> ClusterFile:
        """After StoreDamaged: move the log out of the way, and come back as an observer.

        Raises ConfigError when this node was the only voter: nobody else has the log. The seats
        say who votes; the file's own voters are those of the day when the log was first opened.
        """
        others = tuple(seat.node for seat in self.file.seats if seat.voter)
        if not others:
            raise ConfigError(
                "the log of this cluster is damaged and no other voter has it; restore the folder"
                " 'raft' of home from a backup, or start with a new --home"
            )
        await self._store.set_aside()
        await self._store.close()
        return replace(self.file, role=Role.OBSERVER, voters=others)

    @property
    def trouble(self) -> str:
        """What an operator must mend on this node; "" when nothing."""
        if self.raft.failure is not None:
            return (
                f"this node's disk failed ({self.raft.failure}); it takes part again when it works"
            )
        return ""

    async def stop(self) -> None:
        """Reverse order of start. Workers end with the agent."""
        await self._tasks.stop()
        await self.agent.stop()
        await self.raft.stop()

    async def hand_over(self) -> None:
        """Before a stop: say that we will be back, and let another lead if we do."""
        if self.raft.leader is not None and len(self.state.members) > 1:
            try:
                await self.proposer.propose(
                    SayAway(self._node),
                    actor="node",
                    reason="stopping",
                    deadline_s=GOODBYE_DEADLINE_S,
                )
            except ProposalError as error:
                log.info("the others were not told that we stop: %s", error)
        if self.raft.is_leader and len(self.raft.voters) > 1:
            try:
                await self.raft.transfer_leadership()
            except AivailableError as error:
                log.info("leadership not handed over: %s", error)

    async def found(self, key: ApiKey) -> None:
        """Commit the first command. Raises ProposalError."""
        self._founding = True
        await self.proposer.propose(
            Found(
                cluster_id=self.file.cluster_id,
                name=self.file.name,
                founder=self.own_record(),
                key=key,
                settings=ClusterSettings(join_window_s=self._config.join_window_s),
            ),
            actor="founder",
            reason="no cluster of this name was found",
            deadline_s=FOUND_DEADLINE_S,
        )

    def own_record(self) -> Member:
        """This node as a member, as of now."""
        return Member(
            node=self._node,
            name=self._config.name,
            certificate=self._ports.identity.certificate,
            addresses=self._ports.discovery.addresses(),
            link_port=self._ports.endpoints.link_port,
            api_port=self._ports.endpoints.api_port,
            version=self._config.version,
            proto_min=PROTO_MIN,
            proto_max=PROTO_MAX,
            feature_max=LEVEL,
            instance_id=self._ports.identity.instance_id,
        )

    # --- what links bring

    def link_up(self, node: NodeId) -> None:
        self.raft.link_up(node)
        self.heartbeats.nudge()
        self.controller.nudge()

    def link_down(self, node: NodeId) -> None:
        self.raft.link_down(node)
        self.router.nudge()
        self.controller.nudge()

    def message(self, node: NodeId, message: Any) -> None:
        """A control message of a linked member."""
        match message:
            case RaftMessage(data=data):
                self.raft.receive(node, data)
            case Heartbeat():
                self.heartbeats.receive(node, message)
                self.router.heard(tuple(load.replica for load in message.replicas))
                self.router.nudge()
            case RpcCall():
                self.rpc.called(node, message)
            case RpcReply():
                self.rpc.replied(node, message)
            case _:
                log.debug("%s sent %s outside a stream", short(node), type(message).__name__)

    async def serve_stream(self, node: NodeId, first: Any, stream: MessageStream) -> None:
        """A request or a file another member asks for."""
        match first:
            case Generate():
                await self.router.serve(first, stream)
            case FetchFile(digest=digest, offset=offset):
                await self.agent.send_file(node, digest, offset, stream)
            case _:
                stream.reset("malformed", "a stream begins with a request")

    # --- raft's port (raft.machine.Link)

    def send(self, node: NodeId, data: bytes) -> bool:
        return self._ports.links.send(node, RaftMessage(data))

    def connected(self, node: NodeId) -> bool:
        return node in self._ports.links.connected()

    # --- leaving

    async def leave(self) -> None:
        """Give up vote, then membership. Raises AivailableError when nobody can take over."""
        await self._leaving.leave(self.rpc)

    async def remove(self, expelled: Remove, actor: str) -> None:
        """Take another member out. Raises ProposalError, AivailableError."""
        await self._leaving.remove(self.rpc, expelled, actor)

    # --- roles

    async def _reopen(self, node: NodeId, role: Role) -> None:
        """Ask a member to take part in Raft with another role."""
        voters = sorted(frozenset((*self.raft.voters, node)))
        await self.rpc.ask(node, "reopen", {"role": role.value, "voters": ",".join(voters)})

    async def _reopened(self, node: NodeId, arguments: Mapping[str, str]) -> Mapping[str, str]:
        if node != self.raft.leader:
            raise AivailableError(f"{short(node)} is not the leader that this node follows")
        voters = tuple(entry for entry in arguments.get("voters", "").split(",") if entry)
        self._reopened_s = self._ports.clock.monotonic()
        if arguments.get("role") == Role.VOTER.value:
            await self.raft.become_voter(voters)
            role = Role.VOTER
        else:
            await self.raft.become_observer(tuple(v for v in voters if v != self._node))
            role = Role.OBSERVER
        self._remember(role, voters)
        return {}

    def _remember(self, role: Role, voters: tuple[NodeId, ...]) -> None:
        self.file = replace(self.file, role=role, voters=voters)
        self.file.save(self._ports.home)

    # --- changes

    def _authorize(self, node: NodeId, payload: bytes) -> bool:
        """Asked as the leader, by the state that is applied here."""
        return may_forward(self.state, node, payload)

    def _changed(self, before: State, after: State) -> None:
        """A command was applied here."""
        settled = self._ports.clock.monotonic() - self._started_s > SETTLE_S
        live = self._founding or settled
        self.window.see(after.window, live=live)
        caught_up = before.version < self.file.seats_version <= after.version
        if after.feature_level > self.file.feature_level:
            self.file = replace(self.file, feature_level=after.feature_level)
            self.file.save(self._ports.home)
        if after.members != before.members or caught_up:
            self._members_changed(after)
        self.heartbeats.know(after.members)
        self.controller.nudge()
        self.agent.nudge()
        self.router.nudge()
        self._on_change(before, after)

    def _members_changed(self, state: State) -> None:
        own = state.members.get(self._node)
        if own is not None and own.instance_id == self._ports.identity.instance_id:
            # Of this life: one who comes back after a removal replays that removal, too.
            self._was_member = True
        self._know(seen(self.file, state, self._node))

    def _know(self, file: ClusterFile) -> None:
        """The list of members may have changed: keep it, and link to them."""
        changed, self.file = file.seats != self.file.seats, file
        if changed:
            file.save(self._ports.home)
        # Every other member: whoever votes is known to the log, and a voter that is demoted goes
        # on receiving it.
        self.raft.set_observers(tuple(seat.node for seat in file.seats))
        self.addresses_changed()

    @property
    def expelled(self) -> bool:
        """We were a member, and are no more."""
        return self._was_member and self._node not in self.state.members

    def contacts(self) -> tuple[Contact, ...]:
        """Members to link to; where mDNS knows a newer address, that one first."""
        seen = {entry.short_node: entry for entry in self._ports.discovery.sightings()}
        contacts = []
        for contact in self.file.contacts():
            sighting = seen.get(short(contact.node))
            fresh = sighting.addresses if sighting is not None else ()
            old = tuple(address for address in contact.addresses if address not in fresh)
            contacts.append(replace(contact, addresses=(*fresh, *old)))
        return tuple(contacts)

    def addresses_changed(self) -> None:
        """Where members are may have changed: link to them, and be there for them."""
        contacts = self.contacts()
        self._ports.discovery.reach(tuple(host for one in contacts for host, _ in one.addresses))
        self._ports.links.set_contacts(self.file.cluster_id, contacts)

    def _raft_changed(self) -> None:
        self.controller.nudge()
        self._on_change(self.state, self.state)

    def leaderless_ms(self) -> int:
        """How long no leader has been known; 0 while there is one."""
        now_s = self._ports.clock.monotonic()
        if self.raft.leader is not None:
            self._leaderless_since_s = None
            return 0
        if self._leaderless_since_s is None:
            self._leaderless_since_s = now_s
        return max(1, int((now_s - self._leaderless_since_s) * 1000))

    def _paused(self) -> None:
        self.agent.nudge()
        self.heartbeats.nudge()
        self.controller.nudge()

    def _asked_for(self) -> None:
        """A request waits for a model that is not loaded."""
        self.heartbeats.nudge()
        self.controller.nudge()

    def _agent_changed(self) -> None:
        self.heartbeats.nudge()
        self.router.nudge()

    def _sample(self) -> Heartbeat:
        return Heartbeat(
            node=self._node,
            instance_id=self._ports.identity.instance_id,
            seq=0,
            applied=self.state.version,
            replicas=self.agent.loads(),
            devices=self.agent.device_loads(),
            paused_left_s=self.pause.left_s(),
            is_leader=self.raft.is_leader,
            term=self.raft.term,
            raft_role=self.raft.role.value,
            window_left_s=self.window.left_s(self.state.window),
            demand=self.router.demands.sample(),
        )

    # --- our own news

    async def _tell_news(self) -> None:
        """Keep our member record and inventory true in the log."""
        while True:
            try:
                await self._tell_once()
            except ProposalError as error:
                log.info("news about this node not told yet: %s", error)
            await asyncio.sleep(NEWS_RETRY_S)

    async def _tell_once(self) -> None:
        known = self.state.members.get(self._node)
        if known is None:
            return
        own = self.own_record()
        news = UpdateMember(
            node=own.node,
            name=own.name,
            addresses=own.addresses,
            link_port=own.link_port,
            api_port=own.api_port,
            version=own.version,
            proto_min=own.proto_min,
            proto_max=own.proto_max,
            feature_max=own.feature_max,
            instance_id=own.instance_id,
        )
        if with_news(known, news) != known:
            reason = "this node's own news"
            await self.proposer.propose(news, actor="node", reason=reason)
        await self.agent.tell_inventory()
        await self._lay_down_lost_vote()

    async def _lay_down_lost_vote(self) -> None:
        """Ready to vote, but the log does not count us: the promotion failed, or we were demoted
        while we could not be told. Only a leader's log says so: one that died while it added us
        needs our vote to come back."""
        idle_s = self._ports.clock.monotonic() - self._reopened_s
        if (
            self.raft.leader is not None
            and self.raft.role is Role.VOTER
            and self._node not in self.raft.voters
            and idle_s > VOTE_UNCOUNTED_S
        ):
            await self.raft.become_observer()
            self._remember(Role.OBSERVER, self.raft.voters)
