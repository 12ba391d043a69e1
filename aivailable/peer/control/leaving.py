"""How a member goes for good: by its own will, or taken out by an operator.

First the vote, then the membership, so that no majority ever counts on who is gone. Runs on the
node that was asked; the leader does its part when called (`retire`, `hand_over`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from aivailable.advice import LEAVE
from aivailable.core.ids import NodeId, short
from aivailable.core.state.commands import Remove
from aivailable.core.state.records import Role
from aivailable.errors import AivailableError, ProposalError, ProposalRejected
from aivailable.peer.control.cluster_view import ClusterView
from aivailable.peer.control.proposals import Proposer
from aivailable.peer.control.rpc import Method, Rpc
from aivailable.peer.ports import Links
from aivailable.raft.node import RaftNode

log = logging.getLogger("aivailable.leaving")

LEAVE_DEADLINE_S = 10.0
POLL_S = 0.05
POLLS_MAX = 100
"""A new leader comes within five seconds, or the change is put off."""


class Leaving:
    """Serves `ClusterSession.leave` and `ClusterSession.remove`."""

    def __init__(
        self,
        cluster: ClusterView,
        raft: RaftNode,
        proposer: Proposer,
        links: Links,
        reopen: Callable[[NodeId, Role], Awaitable[None]],
    ) -> None:
        self._cluster = cluster
        self._node = cluster.node
        self._raft = raft
        self._proposer = proposer
        self._links = links
        self._reopen = reopen
        self._retiring: dict[NodeId, int] = {}
        """Node → when it had joined: one that comes back later is another member."""

    def methods(self) -> Mapping[str, Method]:
        """What other members may call here."""
        return {"retire": self._retire, "hand_over": self._hand_over}

    def retiring(self) -> tuple[NodeId, ...]:
        """Who is on the way out: never promoted again."""
        return tuple(
            node for node in sorted(self._retiring) if self._joined(node) == self._retiring[node]
        )

    def _joined(self, node: NodeId) -> int | None:
        member = self._cluster.state.members.get(node)
        return None if member is None else member.joined_at_ms

    async def leave(self, rpc: Rpc) -> None:
        """This node gives up vote and membership. Raises AivailableError when nobody can take
        over."""
        if len(self._cluster.state.members) <= 1:
            return
        self._retire_for_good(self._node)
        try:
            if self._raft.is_leader:
                await self._make_way()
            if self._node in self._raft.voters:
                await self._give_up_vote(rpc, self._node)
        except AivailableError:
            self._retiring.pop(self._node, None)
            raise
        try:
            await self._propose_removal(Remove(self._node), f"node:{short(self._node)}", "left")
        except ProposalError as error:
            # The others cut us off as soon as they have applied it: often no answer comes back.
            log.info("leaving: %s", error)

    async def remove(self, rpc: Rpc, node: NodeId, actor: str) -> None:
        """Take another member out. Raises ProposalRejected, ProposalUnknown, AivailableError."""
        if node == self._node:
            raise ProposalRejected("self", f"a node takes itself out with {LEAVE}")
        if node not in self._cluster.state.members:
            raise ProposalRejected("not_member", f"{short(node)} is no member")
        if self._raft.leader == node:
            await rpc.ask(node, "hand_over", {}, LEAVE_DEADLINE_S)
            await self._until(lambda: self._raft.leader not in (None, node))
        if node in self._raft.voters:
            await self._give_up_vote(rpc, node)
        expelled = Remove(node, revoke_keys=True)
        await self._propose_removal(expelled, actor, "removed by an operator")

    async def _propose_removal(self, removal: Remove, actor: str, reason: str) -> None:
        await self._proposer.propose(
            removal, actor=actor, reason=reason, deadline_s=LEAVE_DEADLINE_S
        )

    async def _give_up_vote(self, rpc: Rpc, node: NodeId) -> None:
        """Let the leader take the vote of `node` away."""
        leader = self._raft.leader
        if leader is None:
            raise AivailableError("no leader is known: a majority must be up to change members")
        if leader == self._node:
            await self._take_vote(node)
        else:
            await rpc.ask(leader, "retire", {"node": node}, LEAVE_DEADLINE_S)

    async def _make_way(self) -> None:
        """As leader: see that another voter exists, and let it lead."""
        if all(node == self._node for node in self._raft.voters):
            candidates = [
                node
                for node in self._links.connected()
                if node in self._cluster.state.members and self._raft.caught_up(node)
            ]
            if not candidates:
                raise AivailableError(
                    "no other member is up and caught up to take over; start one and try again"
                )
            await self._reopen(candidates[0], Role.VOTER)
            await self._raft.add_voter(candidates[0])
        await self._raft.transfer_leadership()
        await self._until(lambda: self._raft.leader not in (None, self._node))

    async def _until(self, done: Callable[[], bool]) -> None:
        for _ in range(POLLS_MAX):
            if done():
                return
            await asyncio.sleep(POLL_S)
        raise AivailableError("no new leader came in time; try again")

    def _retire_for_good(self, node: NodeId) -> None:
        joined_at_ms = self._joined(node)
        if joined_at_ms is not None:
            self._retiring[node] = joined_at_ms

    async def _take_vote(self, node: NodeId) -> None:
        self._retire_for_good(node)
        await self._raft.remove_voter(node)

    async def _retire(self, caller: NodeId, arguments: Mapping[str, str]) -> Mapping[str, str]:
        if not self._raft.is_leader:
            raise AivailableError("this node does not lead")
        await self._take_vote(arguments.get("node", caller))
        return {}

    async def _hand_over(self, _caller: NodeId, _arguments: Mapping[str, str]) -> Mapping[str, str]:
        """Somebody takes this leader out: another leads first, made a voter where there is none."""
        if self._raft.is_leader:
            self._retire_for_good(self._node)
            try:
                await self._make_way()
            finally:
                # The new leader keeps count of who retires; if it comes to nothing, nobody does.
                self._retiring.pop(self._node, None)
        return {}
