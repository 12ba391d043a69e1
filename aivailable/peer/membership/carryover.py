"""What a cluster that ended leaves to the one it ended in: kept in home until it is entered there.

Owns the file and the proposals. API keys, catalogue entries whose file this node holds, and
deployments are proposed one by one, each a command of its own; a name that the other cluster uses
already stays as it is there, and that is said. Owned by peer.membership.merging.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from aivailable.core.ids import ClusterId, short
from aivailable.core.state.commands import Body, PutDeployment, PutKey, RegisterModel
from aivailable.core.state.records import ApiKey, Deployment, Dissolved, Model
from aivailable.core.state.state import State
from aivailable.errors import ProposalRejected, ProposalUnknown, SchemaError
from aivailable.peer.ports import Home, Ports
from aivailable.peer.session import ClusterSession
from aivailable.wire.schema import pack, unpack

log = logging.getLogger("aivailable.carryover")

CARRYOVER_FILE = "belongings"
"""Its name in home, as the first version wrote it."""
WAIT_S = 600.0
"""This long for a node that holds a model's file to come too; then its deployments are given up."""


@dataclass(frozen=True, slots=True)
class Carryover:
    """Of `former`, for `into`."""

    former: ClusterId
    into: ClusterId
    keys: tuple[ApiKey, ...]
    models: tuple[Model, ...]
    deployments: tuple[Deployment, ...]

    @staticmethod
    def of(state: State, former: ClusterId, into: ClusterId) -> Carryover:
        return Carryover(
            former,
            into,
            tuple(state.keys[name] for name in sorted(state.keys)),
            tuple(state.models[name] for name in sorted(state.models)),
            tuple(state.deployments[name] for name in sorted(state.deployments)),
        )

    @staticmethod
    def load(home: Home) -> Carryover | None:
        data = home.load(CARRYOVER_FILE)
        if data is None:
            return None
        try:
            return unpack(Carryover, data)
        except SchemaError as error:
            log.error("what an earlier cluster had is damaged in home, and lost: %s", error)
            home.remove(CARRYOVER_FILE)
            return None

    def save(self, home: Home) -> None:
        """Raises OSError."""
        home.save(CARRYOVER_FILE, pack(self))

    @staticmethod
    def forget(home: Home) -> None:
        home.remove(CARRYOVER_FILE)


class CarryoverEntry:
    """Call `pack` before a move and `bring` now and then after it."""

    def __init__(self, ports: Ports, tell: Callable[[str], None]) -> None:
        self._ports = ports
        self._tell = tell
        self._kept = Carryover.load(ports.home)
        self._since_s: float | None = None

    def busy(self, session: ClusterSession) -> bool:
        """Whether an earlier cluster's things are still to be entered in this one."""
        kept = Carryover.load(self._ports.home)
        return kept is not None and kept.into == session.file.cluster_id

    def pack(self, session: ClusterSession, ended: Dissolved) -> None:
        """Each member brings the catalogue (it registers what it holds); who has asked for the
        merge has put keys and deployments there before. Raises OSError."""
        own = session.file.cluster_id
        kept = Carryover.load(self._ports.home)
        if kept is None or kept.former != own or kept.into != ended.into:
            fresh = Carryover.of(session.state, own, ended.into)
            if kept is not None and kept.into == own:
                # It has not entered all of a still earlier cluster here: that goes on, too.
                fresh = replace(kept, former=own, into=ended.into, models=fresh.models)
            else:
                fresh = replace(fresh, keys=(), deployments=())
            fresh.save(self._ports.home)
            kept = fresh
        self._kept = kept

    async def bring(self, session: ClusterSession) -> None:
        """Propose what is left; keep what must wait."""
        kept, here = self._kept, session.file.cluster_id
        if kept is None or kept.former == here:
            return
        if kept.into != here:
            self._done()
            return
        if self._ports.identity.node not in session.state.members or session.raft.leader is None:
            return
        now_s = self._ports.clock.monotonic()
        self._since_s = now_s if self._since_s is None else self._since_s
        try:
            left = await self._enter(session, kept)
        except ProposalUnknown as error:
            log.info("not all entered yet: %s", error)
            return
        if left.deployments and now_s - self._since_s < WAIT_S:
            return
        for deployment in left.deployments:
            self._tell(f"{deployment.name} is not deployed any more: nobody brought its model")
        self._done()

    async def _enter(self, session: ClusterSession, kept: Carryover) -> Carryover:
        """What could not be entered yet. Raises ProposalUnknown."""
        for key in kept.keys:
            known = session.state.keys.get(key.key_id)
            if known is None or known.hashed != key.hashed:
                await self._propose(session, PutKey(key), kept, f"key {key.key_id}")
        held = self._ports.model_store.held()
        for model in kept.models:
            if model.digest in held and model.digest not in session.state.models:
                body = RegisterModel(model, self._ports.identity.node)
                await self._propose(session, body, kept, f"model {model.name}")
        files = [model.digest for model in kept.models]
        waiting = []
        for deployment in kept.deployments:
            current = session.state.deployments.get(deployment.name)
            if current is not None:
                if replace(current, generation=deployment.generation) != deployment:
                    self._tell(f"{deployment.name}: kept as this cluster has deployed it")
            elif deployment.digest in files and deployment.digest not in session.state.models:
                waiting.append(deployment)
            else:
                await self._propose(session, PutDeployment(deployment), kept, deployment.name)
        return replace(kept, keys=(), deployments=tuple(waiting))

    async def _propose(
        self, session: ClusterSession, body: Body, kept: Carryover, what: str
    ) -> None:
        try:
            await session.proposer.propose(
                body, actor=f"merge:{short(kept.former)}", reason="brought from an ended cluster"
            )
        except ProposalRejected as error:
            self._tell(f"{what} of cluster {short(kept.former)} is not taken over: {error}")

    def _done(self) -> None:
        self._kept, self._since_s = None, None
        Carryover.forget(self._ports.home)
