"""The peer: one node's whole program, whatever the world is made of.

Ties membership, session and links together and answers the API (`peer.service.Service`). Built
by `app` on the real world and by the simulation on another; it makes no port itself.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from aivailable.core.commands import Body, PutKey
from aivailable.core.ids import ClusterId, NodeId, key_hash, key_id, short
from aivailable.core.merging import Recovered
from aivailable.core.planner import explanations
from aivailable.core.records import ApiKey, ClusterSettings, Deployment, Event, Model, Scope
from aivailable.core.state import State
from aivailable.core.status import (
    ClusterStatus,
    DrainStatus,
    FitStatus,
    PauseStatus,
    PlanStatus,
)
from aivailable.core.view import status_of
from aivailable.errors import (
    AivailableError,
    CodeTooOld,
    ConfigError,
    ProposalError,
    ProposalRejected,
    RequestError,
)
from aivailable.peer.cluster_file import ClusterFile
from aivailable.peer.deploying import Deploying
from aivailable.peer.draining import set_draining
from aivailable.peer.membership import Membership
from aivailable.peer.pausing import pause_node
from aivailable.peer.ports import KeyCheck, PeerConfig, Ports, Stream
from aivailable.peer.proposals import Sequence
from aivailable.peer.recovery import recover
from aivailable.peer.service import DeployRequest, Routing
from aivailable.peer.session import Session
from aivailable.peer.tasks import Tasks
from aivailable.raft.store import StoreDamaged, StoreTooNew, StoreUnusable
from aivailable.wire.generation import Generate, GenerationEvent
from aivailable.wire.join import JoinAnswer, JoinOffer, JoinRequest

log = logging.getLogger("aivailable.peer")

ADMIN_KEY_FILE = "admin.key"
BARRIER_DEADLINE_S = 5.0
KEY_PREFIX = "aiv_"
KEY_BYTES = 20
"""160 random bits: no key can be guessed, so a plain hash of it may be replicated."""


def make_key(random_bytes: bytes) -> str:
    """The text of an API key from KEY_BYTES random bytes."""
    return KEY_PREFIX + base64.b32encode(random_bytes).decode().rstrip("=").lower()


class Peer:
    """Implements ports.LinkListener, ports.JoinServer and service.Service."""

    def __init__(
        self, config: PeerConfig, ports: Ports, tell: Callable[[str], None] = lambda text: None
    ) -> None:
        """`tell` shows a person what happens; it is told secrets (the admin key, once)."""
        self._config = config
        self._ports = ports
        self._tasks = Tasks("peer")
        self._sequence = Sequence(ports.home)
        self.admin_key = self._load_admin_key()
        self.session: Session | None = None
        self.left = asyncio.Event()
        """Set once this node has left its cluster for good, or cannot take part (`failure` says
        why): the process should end."""
        self.failure = ""
        self.membership = Membership(
            config,
            ports,
            self.admin_key,
            self._open_session,
            self._close_session,
            tell,
        )

    @property
    def node(self) -> NodeId:
        return self._ports.identity.node

    def _load_admin_key(self) -> str:
        stored = self._ports.home.load(ADMIN_KEY_FILE)
        if stored is None:
            key = make_key(self._ports.randomness.token_bytes(KEY_BYTES))
            self._ports.home.save(ADMIN_KEY_FILE, key.encode())
            return key
        try:
            return stored.decode("ascii").strip()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{ADMIN_KEY_FILE} in home is damaged; remove it") from error

    async def start(self) -> None:
        """Listen, look around, and become a member in the background."""
        await self._ports.links.start(self)
        self._ports.endpoints.link_port = self._ports.links.port
        await self._ports.discovery.start()
        self._tasks.spawn(self._belong(), "membership")

    async def _belong(self) -> None:
        """Be a member for ever. What only a person can mend ends the process, with its reason."""
        try:
            await self.membership.run()
        except (CodeTooOld, ConfigError, StoreTooNew, StoreUnusable) as error:
            self._end(str(error))

    def _end(self, reason: str) -> None:
        if not self.failure:
            log.error("this node cannot take part: %s", reason)
            self.failure = reason
            self.left.set()

    async def stop(self) -> None:
        """Hand over what we lead, then end everything in reverse order."""
        if self.session is not None:
            await self.session.hand_over()
        await self._tasks.stop()
        await self._close_session()
        await self._ports.links.stop()
        await self._ports.discovery.stop()

    async def _open_session(self, file: ClusterFile) -> Session:
        session = Session(self._config, self._ports, file, self._sequence, self._changed)
        self.session = session
        try:
            await session.start()
        except StoreDamaged as error:
            log.error("%s; it is set aside, and this node rejoins as an observer", error)
            return await self._open_session(await session.set_aside_log())
        return session

    async def _close_session(self) -> None:
        session, self.session = self.session, None
        if session is not None:
            self._ports.links.set_contacts("", ())
            await session.stop()

    def _changed(self, before: State, after: State) -> None:
        """The replicated state (or Raft's own) has changed."""
        if before.window != after.window or before.cluster != after.cluster:
            self._tasks.spawn(self.membership.announce(), "announce")
        if self.session is not None and self.session.replicated.too_old:
            self._end(self.session.replicated.too_old)
        if self.session is not None and self.session.expelled:
            self._tasks.spawn(self.membership.forget(), "forget")

    # --- ports.LinkListener

    def link_up(self, node: NodeId, instance_id: str, version: str) -> None:
        if self.membership.advice.startswith(short(node)):
            self.membership.phase, self.membership.advice = "member", ""
        if self.session is not None:
            self.session.link_up(node)

    def link_down(self, node: NodeId, reason: str) -> None:
        log.info("link to %s down: %s", short(node), reason)
        if self.session is not None:
            self.session.link_down(node)

    def message(self, node: NodeId, message: Any) -> None:
        if self.session is not None:
            self.session.message(node, message)

    async def serve_stream(self, node: NodeId, first: Any, stream: Stream) -> None:
        if self.session is None:
            stream.reset("not_hosting", "this node has no cluster now")
            return
        await self.session.serve_stream(node, first, stream)

    def refused(self, node: NodeId, code: str, message: str) -> None:
        if code in ("not_member", "busy", "other_cluster"):
            # It has not applied our admission yet, is starting, or stops: the next dial will tell.
            log.info("%s does not take our link yet: %s %s", short(node), code, message)
            return
        if code == "removed":
            self.membership.phase = "removed"
            self.membership.advice = (
                f"{short(node)} says that this node was removed from the cluster; `aivailable"
                " leave` here makes it free to join again"
            )
            return
        log.warning("%s refuses our link: %s %s", short(node), code, message)
        if code == "cloned_identity":
            # Two logs of one voter would promise different things. Members that start later hear
            # only one of the two machines, perhaps us; so we link to nobody until a person acts.
            self._tasks.spawn(self._ports.links.stop(), "withdraw")
        self.membership.advice = f"{short(node)} refuses our link: {code}: {message}"

    # --- ports.JoinServer

    def offer(self, nonce: bytes) -> JoinOffer | None:
        return self.membership.offer(nonce)

    async def admit(
        self, request: JoinRequest, node: NodeId, key: KeyCheck = KeyCheck.NONE
    ) -> JoinAnswer:
        return await self.membership.admit(request, node, key)

    # --- service.Service

    def status(self) -> ClusterStatus:
        session = self.session
        if session is None:
            return ClusterStatus(
                phase=self.membership.phase,
                advice=self.membership.advice,
                here=self.node,
                cluster_id="",
                cluster_name=self._config.cluster_name,
                version=0,
                term=0,
                leader=None,
                controller=None,
                quorum=False,
                window_open=False,
                window_left_s=0,
                feature_level=0,
            )
        state, liveness = session.state, session.liveness()
        leader = session.raft.leader
        return status_of(
            state,
            liveness,
            phase=self.membership.phase,
            advice=session.trouble or self.membership.what_to_do(),
            leader=leader,
            term=session.raft.term,
            quorum=leader is not None,
            window_left_s=session.window.left_s(state.window),
            waiting=self.membership.waiting(),
            here_devices_load=self._ports.devices.load(),
            explain=explanations(state, liveness),
        )

    async def barrier(self) -> None:
        await self._member().raft.barrier(BARRIER_DEADLINE_S)

    def find_key(self, api_key: str) -> ApiKey | None:
        hashed = key_hash(api_key)
        if self.session is None or self.session.state.cluster is None:
            # Before we know the cluster's keys, this node's own is the only one.
            own = key_hash(self.admin_key)
            return ApiKey(own[:8], own, Scope.ADMIN, "this node") if hashed == own else None
        return self.session.state.find_key(hashed)

    def keys(self) -> tuple[ApiKey, ...]:
        state = self._state()
        return tuple(state.keys[name] for name in sorted(state.keys))

    def deployments(self) -> tuple[Deployment, ...]:
        state = self._state()
        return tuple(state.deployments[name] for name in sorted(state.deployments))

    def models(self) -> tuple[Model, ...]:
        state = self._state()
        return tuple(state.models[name] for name in sorted(state.models))

    def events(self, after_version: int) -> tuple[Event, ...]:
        return tuple(entry for entry in self._state().events if entry.version > after_version)

    async def changed(self, after_version: int) -> int:
        return await self._member().replicated.changed(after_version)

    async def propose(self, body: Body, *, actor: str, reason: str) -> None:
        await self._member().proposer.propose(body, actor=actor, reason=reason)

    async def deploy(self, request: DeployRequest, *, actor: str) -> Deployment:
        return await self._deploying().deploy(request, actor=actor)

    async def preview(self, request: DeployRequest) -> PlanStatus:
        return await self._deploying().preview(request)

    async def fit(self, request: DeployRequest) -> FitStatus:
        return await self._deploying().fit(request)

    def _deploying(self) -> Deploying:
        session = self._member()
        return Deploying(
            self.node, self._ports, session.proposer, lambda: session.state, session.liveness
        )

    def generate(
        self, request: Generate, key: ApiKey | None, routing: Routing
    ) -> AsyncGenerator[GenerationEvent, None]:
        return self._member().router.run(request, routing)

    async def mint_key(self, scope: str, label: str, *, actor: str) -> tuple[str, ApiKey]:
        text = make_key(self._ports.randomness.token_bytes(KEY_BYTES))
        hashed = key_hash(text)
        wall_ms = self._ports.clock.wall_ms()
        try:
            key = ApiKey(key_id(hashed), hashed, Scope(scope), label[:100], wall_ms)
        except ValueError as error:
            raise RequestError(400, "invalid_scope", "scope: admin or user") from error
        await self.propose(PutKey(key), actor=actor, reason="key create")
        return text, key

    async def leave(self) -> None:
        session = self._member()
        if session.expelled or self.membership.phase == "removed":
            await self.membership.forget()
            # Its key was revoked with the membership; the next start makes a new one.
            self._ports.home.remove(ADMIN_KEY_FILE)
            self.left.set()
            return
        if len(session.state.members) <= 1:
            raise ProposalRejected("last_member", "the last member cannot leave its cluster")
        # Who links to nobody and hears no leader asks nobody: it was taken out while it was off,
        # or all others are gone. Its log is set aside, not lost.
        if self._ports.links.connected() or session.raft.leader is not None:
            await _possible(session.leave())
        await self.membership.forget()
        self.left.set()

    async def recover(self, *, actor: str) -> Recovered:
        session = self._member()
        return await self.membership.exclusively(
            lambda: recover(session, self._ports, actor=actor, move=self.membership.move)
        )

    async def merge(self, into: ClusterId, *, actor: str) -> None:
        await self.membership.merge(into, actor)

    async def remove(self, node: NodeId, *, actor: str) -> None:
        await _possible(self._member().remove(node, actor))

    async def drain(
        self, node: NodeId, draining: bool, *, force: bool = False, actor: str
    ) -> DrainStatus:
        session = self._member()
        return await set_draining(
            node,
            draining,
            state=session.state,
            liveness=session.liveness(),
            now_ms=self._ports.clock.wall_ms(),
            proposer=session.proposer,
            force=force,
            actor=actor,
        )

    async def pause(self, node: NodeId, duration_s: int) -> PauseStatus:
        session = self._member()
        return await pause_node(
            node,
            duration_s,
            here=self.node,
            pause=session.pause,
            calls=session.calls,
            state=session.state,
        )

    def settings(self) -> ClusterSettings:
        return self._state().settings

    def ready(self) -> tuple[bool, str]:
        session = self.session
        if session is None:
            return False, self.membership.advice or self.membership.phase
        if self.node not in session.state.members:
            return False, "the cluster's state has not arrived yet"
        return True, ""

    def _member(self) -> Session:
        if self.session is None:
            raise RequestError(
                503,
                "not_a_member",
                self.membership.advice or "this node has no cluster yet; see `aivailable status`",
                retry_after_s=3,
            )
        return self.session

    def _state(self) -> State:
        return State() if self.session is None else self.session.state


async def _possible(change: Awaitable[None]) -> None:
    """A change of members that the cluster cannot do now is the operator's to try again."""
    try:
        await change
    except (RequestError, ProposalError):
        raise
    except AivailableError as error:
        raise RequestError(409, "not_now", str(error), retry_after_s=5) from error
