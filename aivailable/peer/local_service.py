"""This node as its own API sees it: `service`'s parts, one small object for each reader.

Owns what an answer needs besides the session: that there is none now, this node's admin key, and
what follows from leaving. Each part reads the session of the moment, for the node may change its
cluster. Built by `peer.node`.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Awaitable
from dataclasses import replace

from aivailable.advice import STATUS
from aivailable.core.ids import AccountId, ClusterId, KeyId, NodeId, key_hash, key_id
from aivailable.core.planning.planner import explanations
from aivailable.core.serving.status import (
    ClusterStatus,
    DrainStatus,
    FitStatus,
    PauseStatus,
    PlanStatus,
)
from aivailable.core.serving.view import status_of
from aivailable.core.state.commands import Body, PutKey, Remove, SetWindow
from aivailable.core.state.keys import KeyEndings, endings
from aivailable.core.state.merging import Recovered
from aivailable.core.state.records import ApiKey, ClusterSettings, Deployment, Event, Scope
from aivailable.core.state.state import State
from aivailable.errors import (
    AivailableError,
    ConfigError,
    ProposalError,
    ProposalRejected,
    RequestError,
)
from aivailable.peer.control.draining import set_draining
from aivailable.peer.control.pausing import pause_node
from aivailable.peer.deploying.deploying import Deploying
from aivailable.peer.home import ADMIN_KEY_FILE
from aivailable.peer.membership.membership import Membership
from aivailable.peer.membership.recovery import Wish, recover
from aivailable.peer.ports import Ports
from aivailable.peer.service import DeployRequest, NodeFigures, RaftFigures, Routing
from aivailable.peer.session import ClusterSession
from aivailable.wire.generation import Generate, GenerationEvent

BARRIER_DEADLINE_S = 5.0
KEY_PREFIX = "aiv_"
KEY_BYTES = 20
"""160 random bits: no key can be guessed, so a plain hash of it may be replicated."""
LABEL_MAX_CHARS = 100
ADMIN_KEYS_CUT_OFF_MAX_S = 24 * 3600
"""After this long without a leader, a node accepts only its own admin key as an admin key. All
other admin keys count as user keys there, because serving needs no majority."""


def make_key(random_bytes: bytes) -> str:
    """The text of an API key from KEY_BYTES random bytes."""
    return KEY_PREFIX + base64.b32encode(random_bytes).decode().rstrip("=").lower()


def load_admin_key(ports: Ports) -> str:
    """This node's own key; made when there is none. Raises ConfigError, OSError."""
    stored = ports.home.load(ADMIN_KEY_FILE)
    if stored is None:
        key = make_key(ports.randomness.token_bytes(KEY_BYTES))
        ports.home.save(ADMIN_KEY_FILE, key.encode())
        return key
    try:
        return stored.decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{ADMIN_KEY_FILE} in home is damaged; remove it") from error


class CurrentSession:
    """The session of this moment, written by `peer.node` alone."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self.session: ClusterSession | None = None

    @property
    def state(self) -> State:
        """The replicated state; an empty one while there is no session."""
        return State() if self.session is None else self.session.state

    def required(self) -> ClusterSession:
        """Raises RequestError 503 while this node is in no cluster."""
        if self.session is None:
            raise RequestError(
                503,
                "not_a_member",
                self._membership.advice or f"this node has no cluster yet; see {STATUS}",
                retry_after_s=3,
            )
        return self.session


class LocalInference:
    """service.Inference: the session's router."""

    def __init__(self, node: NodeId, current: CurrentSession) -> None:
        self.node = node
        self._current = current

    def generate(
        self, request: Generate, account: AccountId, routing: Routing
    ) -> AsyncGenerator[GenerationEvent, None]:
        return self._current.required().router.run(replace(request, account=account), routing)


class LocalObservation:
    """service.Observation: the replicated state, and what this node hears and does."""

    def __init__(
        self, cluster_name: str, ports: Ports, membership: Membership, current: CurrentSession
    ) -> None:
        self.node = ports.identity.node
        self._cluster_name = cluster_name
        self._ports = ports
        self._membership = membership
        self._current = current

    def status(self) -> ClusterStatus:
        session = self._current.session
        if session is None:
            return ClusterStatus(
                phase=self._membership.phase,
                advice=self._membership.advice,
                here=self.node,
                cluster_id="",
                cluster_name=self._cluster_name,
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
            phase=self._membership.phase,
            advice=session.trouble or self._membership.what_to_do(),
            leader=leader,
            term=session.raft.term,
            quorum=leader is not None,
            window_left_s=session.window.left_s(state.window),
            waiting=self._membership.waiting(),
            here_devices_load=self._ports.devices.load(),
            explain=explanations(state, liveness),
        )

    def ready(self) -> tuple[bool, str]:
        if self._current.session is None:
            return False, self._membership.advice or self._membership.phase
        if self.node not in self._current.state.members:
            return False, "the cluster's state has not arrived yet"
        return True, ""

    def figures(self) -> NodeFigures:
        session = self._current.session
        if session is None:
            return NodeFigures()
        return NodeFigures(
            raft=RaftFigures(
                leading=session.raft.is_leader,
                commit_index=session.raft.commit_index,
                last_index=session.raft.last_index,
                log_length=session.raft.log_length,
                tally=replace(session.raft.tally),
            ),
            demand=session.router.demands.sample(),
            queue_waits=session.agent.queue_waits(),
        )

    async def barrier(self) -> None:
        await self._current.required().raft.barrier(BARRIER_DEADLINE_S)

    def deployments(self) -> tuple[Deployment, ...]:
        state = self._current.state
        return tuple(state.deployments[name] for name in sorted(state.deployments))

    def settings(self) -> ClusterSettings:
        return self._current.state.settings

    def events(self, after_version: int) -> tuple[Event, ...]:
        events = self._current.state.events
        return tuple(entry for entry in events if entry.version > after_version)

    async def changed(self, after_version: int) -> int:
        return await self._current.required().replicated.changed(after_version)


class LocalChanges:
    """service.Changes: the session's proposer."""

    def __init__(self, current: CurrentSession) -> None:
        self._current = current

    async def propose(self, body: Body, *, actor: str, reason: str) -> None:
        session = self._current.required()
        await session.proposer.propose(body, actor=actor, reason=reason)
        if isinstance(body, SetWindow):
            session.window.opened_here(session.state.window)


class LocalApiKeys:
    """service.ApiKeys: the cluster's, and before there is a cluster this node's own."""

    def __init__(
        self, ports: Ports, admin_key: str, current: CurrentSession, changes: LocalChanges
    ) -> None:
        self._ports = ports
        own = key_hash(admin_key)
        self._own = ApiKey(key_id(own), own, Scope.ADMIN, "this node")
        """Before we know the cluster's keys, this is the only one."""
        self._current = current
        self._changes = changes

    def find_key(self, api_key: str) -> ApiKey | None:
        hashed, state = key_hash(api_key), self._current.state
        if state.cluster is None:
            return self._own if hashed == self._own.hashed else None
        return state.find_key(hashed)

    def with_id(self, key_id: KeyId) -> ApiKey | None:
        state = self._current.state
        if state.cluster is None:
            return self._own if key_id == self._own.key_id else None
        key = state.keys.get(key_id)
        return None if key is None else state.find_key(key.hashed)

    def believed(self, key: ApiKey) -> bool:
        """A majority may have revoked it while this node was cut off. Its own key stays: whoever
        has that has this machine's home, and must be able to `recover`."""
        session = self._current.session
        if session is None or key.hashed == self._own.hashed:
            return True
        return session.leaderless_ms() < ADMIN_KEYS_CUT_OFF_MAX_S * 1000

    def keys(self) -> tuple[ApiKey, ...]:
        state = self._current.state
        return tuple(state.keys[name] for name in sorted(state.keys))

    async def mint_key(self, scope: str, label: str, *, actor: str) -> tuple[str, ApiKey]:
        text = make_key(self._ports.randomness.token_bytes(KEY_BYTES))
        hashed = key_hash(text)
        wall_ms = self._ports.clock.wall_ms()
        try:
            key = ApiKey(key_id(hashed), hashed, Scope(scope), label[:LABEL_MAX_CHARS], wall_ms)
        except ValueError as error:
            raise RequestError(400, "invalid_scope", "scope: admin or user") from error
        await self._changes.propose(PutKey(key), actor=actor, reason="key create")
        return text, key


class LocalDeployments:
    """service.Deployments: `peer.deploying.deploying` on the session of the moment."""

    def __init__(self, ports: Ports, current: CurrentSession) -> None:
        self._ports = ports
        self._current = current

    async def deploy(self, request: DeployRequest, *, actor: str) -> Deployment:
        return await self._deploying().deploy(request, actor=actor)

    async def preview(self, request: DeployRequest) -> PlanStatus:
        return await self._deploying().preview(request)

    async def fit(self, request: DeployRequest) -> FitStatus:
        return await self._deploying().fit(request)

    def _deploying(self) -> Deploying:
        session = self._current.required()
        return Deploying(self._ports, session.proposer, session)


class LocalMembers:
    """service.Members. `left` is set once this node has left its cluster for good."""

    def __init__(
        self, ports: Ports, membership: Membership, current: CurrentSession, left: asyncio.Event
    ) -> None:
        self._ports = ports
        self._membership = membership
        self._current = current
        self._left = left

    async def leave(self) -> None:
        session = self._current.required()
        if session.expelled or self._membership.phase == "removed":
            await self._membership.forget()
            # Its key was revoked with the membership; the next start makes a new one.
            self._ports.home.remove(ADMIN_KEY_FILE)
            self._left.set()
            return
        if len(session.state.members) <= 1:
            raise ProposalRejected("last_member", "the last member cannot leave its cluster")
        # Who links to nobody and hears no leader asks nobody: it was taken out while it was off,
        # or all others are gone. Its log is set aside, not lost.
        if self._ports.links.connected() or session.raft.leader is not None:
            await _possible(session.leave())
        await self._membership.forget()
        self._left.set()

    async def recover(
        self,
        *,
        actor: str,
        expected: tuple[NodeId, ...] | None = None,
        keep_keys: tuple[KeyId, ...] = (),
    ) -> Recovered:
        session = self._current.required()
        wish = Wish(actor, expected, keep_keys)
        return await self._membership.exclusively(
            lambda: recover(session, self._ports, wish, move=self._membership.move)
        )

    async def merge(self, into: ClusterId, *, actor: str) -> None:
        await self._membership.merge(into, actor)

    async def remove(
        self,
        node: NodeId,
        *,
        actor: str,
        keep_keys: tuple[KeyId, ...] = (),
        end_keys: tuple[KeyId, ...] = (),
    ) -> KeyEndings:
        found = self.removal(node, keep_keys=keep_keys, end_keys=end_keys)
        if found.problem:  # Before the vote goes: only then is nothing changed.
            raise RequestError(409, "keys", found.problem)
        expelled = Remove(node, revoke_keys=True, keep_keys=keep_keys, end_keys=end_keys)
        await _possible(self._current.required().remove(expelled, actor))
        return found

    def removal(
        self, node: NodeId, *, keep_keys: tuple[KeyId, ...], end_keys: tuple[KeyId, ...]
    ) -> KeyEndings:
        return endings(self._current.required().state, (node,), keep_keys, end_keys)

    async def drain(
        self, node: NodeId, draining: bool, *, force: bool = False, actor: str
    ) -> DrainStatus:
        session = self._current.required()
        return await set_draining(
            node,
            draining,
            cluster=session,
            proposer=session.proposer,
            force=force,
            actor=actor,
        )

    async def pause(self, node: NodeId, duration_s: int) -> PauseStatus:
        session = self._current.required()
        return await pause_node(
            node, duration_s, cluster=session, pause=session.pause, rpc=session.rpc
        )


async def _possible(change: Awaitable[None]) -> None:
    """A change of members that the cluster cannot do now is the operator's to try again."""
    try:
        await change
    except (RequestError, ProposalError):
        raise
    except AivailableError as error:
        raise RequestError(409, "not_now", str(error), retry_after_s=5) from error
