"""The controller: while this node leads, it fences itself in and proposes what the planner says.

It has no power but proposing: `apply` checks everything again, and refuses another term's word.
Voters are changed one at a time, through Raft first and the record after (`core.cluster.voters`
decides).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aivailable.core.cluster.voters import Demote, Promote, RecordRole, TransferFirst, next_step
from aivailable.core.ids import NodeId, short
from aivailable.core.planning.planner import plan
from aivailable.core.state.commands import Body, SetRole, TakeControl
from aivailable.core.state.records import Control, Role
from aivailable.core.state.state import State
from aivailable.errors import AivailableError, ProposalError, ProposalRejected
from aivailable.peer.control.cluster_view import ClusterView
from aivailable.peer.control.leaving import Leaving
from aivailable.peer.control.proposals import Proposer
from aivailable.peer.joining.window import WindowClock
from aivailable.peer.ports import Clock
from aivailable.peer.tasks import Pulse
from aivailable.raft.node import RaftNode

log = logging.getLogger("aivailable.controller")

PERIOD_S = 0.5
REFUSED_PAUSE_S = (0.25, 8.0)
"""After a refused command the first pause and the longest: each refusal is an entry in the log, and
a nudge, so that without it they would come in hundreds a second."""
CONTROL_DEADLINE_S = 2.0


class Controller:
    """Runs on every node; acts only while the node is Raft leader."""

    def __init__(
        self,
        cluster: ClusterView,
        clock: Clock,
        raft: RaftNode,
        proposer: Proposer,
        window: WindowClock,
        leaving: Leaving,
        reopen: Callable[[NodeId, Role], Awaitable[None]],
    ) -> None:
        self._cluster = cluster
        self._node = cluster.node
        self._clock = clock
        self._raft = raft
        self._proposer = proposer
        self._window = window
        self._leaving = leaving
        self._reopen = reopen
        self._down_since_s: dict[NodeId, float] = {}
        self._pulse = Pulse()

    def nudge(self) -> None:
        self._pulse.nudge()

    async def run(self) -> None:
        """Plan and propose for ever; a refused or unknown proposal is planned anew, a refused one
        after a pause."""
        first_s, longest_s = REFUSED_PAUSE_S
        pause_s = first_s
        while True:
            state = self._cluster.state
            lives = state.cluster is not None and state.dissolved is None
            if self._raft.is_leader and lives:
                try:
                    await self._step()
                    pause_s = first_s
                except ProposalRejected as error:
                    log.info("proposal refused, next one in %.2f s: %s", pause_s, error)
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, longest_s)
                except ProposalError as error:
                    log.info("proposal not taken: %s", error)
            await self._pulse.wait(PERIOD_S)

    async def _step(self) -> None:
        control = Control(self._node, self._raft.term)
        if self._cluster.state.control != control:
            await self._proposer.propose(
                TakeControl(control.node, control.term),
                actor="planner",
                reason="new Raft leader",
                deadline_s=CONTROL_DEADLINE_S,
            )
        state = self._cluster.state
        bodies = plan(
            state, self._cluster.liveness(), window_expired=self._window.expired(state.window)
        )
        for body in bodies:
            await self._propose(body, control, "plan")
        await self._voters(control)

    async def _propose(self, body: Body, control: Control, reason: str) -> None:
        await self._proposer.propose(body, actor="planner", reason=reason, control=control)

    def _time_down(self, state: State) -> dict[NodeId, float]:
        """Seconds since this node first saw each member marked down."""
        now_s = self._clock.monotonic()
        self._down_since_s = {
            node: self._down_since_s.get(node, now_s)
            for node in sorted(state.members)
            if state.members[node].down
        }
        return {node: now_s - since_s for node, since_s in self._down_since_s.items()}

    async def _voters(self, control: Control) -> None:
        """At most one membership step a round; the record follows Raft, never leads it."""
        state = self._cluster.state
        leaving = self._leaving.retiring()
        if self._node in leaving:
            return  # Whoever takes over decides; we would demote the heir as one voter too many.
        caught_up = tuple(
            node
            for node in sorted(state.members)
            if node not in leaving and self._raft.caught_up(node)
        )
        step = next_step(
            state,
            self._cluster.liveness(),
            self._raft.voters,
            caught_up,
            self._node,
            self._time_down(state),
        )
        try:
            match step:
                case Promote(node=node):
                    log.info("promoting %s to voter", short(node))
                    await self._reopen(node, Role.VOTER)
                    await self._raft.add_voter(node)
                    await self._propose(SetRole(node, Role.VOTER), control, "voters")
                case Demote(node=node):
                    log.info("demoting %s to observer", short(node))
                    await self._raft.remove_voter(node)
                    if node in state.members:
                        await self._propose(SetRole(node, Role.OBSERVER), control, "voters")
                        await self._reopen(node, Role.OBSERVER)
                case RecordRole(node=node, role=role):
                    await self._propose(SetRole(node, role), control, "voters")
                case TransferFirst():
                    await self._raft.transfer_leadership()
                case None:
                    return
        except AivailableError as error:
            log.info("voter step %s not done: %s", step, error)
