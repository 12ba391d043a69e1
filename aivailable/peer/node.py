"""The peer: one node's whole program, whatever the world is made of.

Ties membership, session and links together, and holds the parts that answer the API. Built by
`app` on the real world and by the simulation on another; it makes no port itself.

Not to be confused with `raft.node`, one member's copy of the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from aivailable.advice import UP_NEW_IDENTITY
from aivailable.core.ids import NodeId, short
from aivailable.core.state.state import State
from aivailable.errors import (
    CodeTooOld,
    ConfigError,
)
from aivailable.peer.control.proposals import CommandNumbers
from aivailable.peer.joining.cluster_file import ClusterFile
from aivailable.peer.local_service import (
    CurrentSession,
    LocalApiKeys,
    LocalChanges,
    LocalDeployments,
    LocalInference,
    LocalMembers,
    LocalObservation,
    load_admin_key,
)
from aivailable.peer.membership.membership import Membership
from aivailable.peer.ports import KeyCheck, MessageStream, PeerConfig, Ports
from aivailable.peer.session import ClusterSession
from aivailable.peer.tasks import Tasks
from aivailable.raft.store import StoreDamaged, StoreTooNew, StoreUnusable
from aivailable.wire.join import JoinAnswer, JoinOffer, JoinRequest

log = logging.getLogger("aivailable.peer")


class Peer:
    """Implements ports.LinkListener and ports.JoinServer, and service.Service by its parts."""

    def __init__(
        self, config: PeerConfig, ports: Ports, tell: Callable[[str], None] = lambda _text: None
    ) -> None:
        """`tell` shows a person what happens; it is told secrets (the admin key, once)."""
        self._config = config
        self._ports = ports
        self._tasks = Tasks("peer")
        self._numbers = CommandNumbers(ports.home)
        self.admin_key = load_admin_key(ports)
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
        self._current = CurrentSession(self.membership)
        current = self._current
        self.inference = LocalInference(self.node, current)
        self.observation = LocalObservation(config.cluster_name, ports, self.membership, current)
        self.changes = LocalChanges(current)
        self.api_keys = LocalApiKeys(ports, self.admin_key, current, self.changes)
        self.deployments = LocalDeployments(ports, current)
        self.members = LocalMembers(ports, self.membership, current, self.left)

    @property
    def node(self) -> NodeId:
        return self._ports.identity.node

    @property
    def session(self) -> ClusterSession | None:
        """Our part in a cluster; None while we seek, move, or have left."""
        return self._current.session

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

    async def _open_session(self, file: ClusterFile) -> ClusterSession:
        session = ClusterSession(self._config, self._ports, file, self._numbers, self._changed)
        self._current.session = session
        try:
            await session.start()
        except StoreDamaged as error:
            log.error("%s; it is set aside, and this node rejoins as an observer", error)
            return await self._open_session(await session.set_aside_log())
        return session

    async def _close_session(self) -> None:
        session, self._current.session = self._current.session, None
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
            self._tasks.spawn(self._removed(), "forget")

    async def _removed(self) -> None:
        """An operator has taken us out; this process only says so from now on."""
        await self.membership.forget()
        if not self.left.is_set():
            self.membership.advice = (
                f"this node was removed from its cluster: stop it, then {UP_NEW_IDENTITY} makes it"
                " a new node, with its models kept"
            )

    # --- ports.LinkListener

    def link_up(self, node: NodeId, instance_id: str, version: str) -> None:
        log.info("link to %s up: instance %s, version %s", short(node), instance_id, version)
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

    async def serve_stream(self, node: NodeId, first: Any, stream: MessageStream) -> None:
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
            self.membership.told_removed(
                f"{short(node)} says that this node was removed from the cluster: stop it, then"
                f" {UP_NEW_IDENTITY} makes it a new node, with its models kept"
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
