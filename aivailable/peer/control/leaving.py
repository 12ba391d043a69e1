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
from aivailable.peer.ports import Clock, Links
from aivailable.raft.node import RaftNode

log = logging.getLogger("aivailable.leaving")

LEAVE_DEADLINE_S = 10.0
POLL_S = 0.05
POLLS_MAX = 100
"""A new leader comes within five seconds, or the change is put off."""
TAKEN_OUT_S = 15.0
"""Who asks for another's vote removes that node within this time, or the vote comes back."""
DOUBT_S = 600.0
"""Who took a vote and did not remove the node is refused for this long."""
HAND_OVER_PAUSE_S = 30.0
"""A leader is taken out by an operator now and then, not again and again."""


class Leaving:
    """Serves `ClusterSession.leave` and `ClusterSession.remove`."""

    def __init__(
        self,
        cluster: ClusterView,
        clock: Clock,
        raft: RaftNode,
        proposer: Proposer,
        links: Links,
        reopen: Callable[[NodeId, Role], Awaitable[None]],
    ) -> None:
        self._cluster = cluster
        self._node = cluster.node
        self._clock = clock
        self._raft = raft
        self._proposer = proposer
        self._links = links
        self._reopen = reopen
        self._retiring: dict[NodeId, int] = {}
        """Node → when it had joined: one that comes back later is another member."""
        self._taken_out: tuple[NodeId, NodeId, float] | None = None
        """Whose vote was taken at whose word, and until when its removal is awaited."""
        self._doubted: dict[NodeId, float] = {}
        """Who took a vote for nothing, and until when it is refused."""
        self._handed_over_s = float("-inf")

    def methods(self) -> Mapping[str, Method]:
        """What other members may call here."""
        return {"retire": self._retire, "hand_over": self._hand_over}

    def retiring(self) -> tuple[NodeId, ...]:
        """Who is on the way out: never promoted again, unless nobody removes it after all."""
        self._settle_taken_out()
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

    async def remove(self, rpc: Rpc, expelled: Remove, actor: str) -> None:
        """Take another member out. Raises ProposalRejected, ProposalUnknown, AivailableError."""
        node = expelled.node
        if node == self._node:
            raise ProposalRejected("self", f"a node takes itself out with {LEAVE}")
        if node not in self._cluster.state.members:
            raise ProposalRejected("not_member", f"{short(node)} is not a member")
        if self._raft.leader == node:
            await rpc.ask(node, "hand_over", {}, LEAVE_DEADLINE_S)
            await self._until(lambda: self._raft.leader not in (None, node))
        if node in self._raft.voters:
            await self._give_up_vote(rpc, node)
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
        """A node gives up its own vote; or a member passes on that an operator removes another."""
        if not self._raft.is_leader:
            raise AivailableError("this node does not lead")
        node = arguments.get("node", caller)
        if node != caller:
            self._settle_taken_out()
            self._may_take_out(caller, node)
            if self._taken_out is None:  # Asking again gives no more time.
                self._taken_out = (node, caller, self._clock.monotonic() + TAKEN_OUT_S)
            log.info("%s takes %s out, for an operator", short(caller), short(node))
        try:
            await self._take_vote(node)
        except AivailableError:
            if node != caller:
                self._taken_out = None
                self._retiring.pop(node, None)
            raise
        return {}

    def _may_take_out(self, caller: NodeId, node: NodeId) -> None:
        """Raises AivailableError. One at a time, so that no member can shrink the voters to one;
        and what it did not mean is undone."""
        if caller not in self._cluster.state.members or node not in self._cluster.state.members:
            raise AivailableError("only members take members out")
        if self._doubted.get(caller, float("-inf")) > self._clock.monotonic():
            raise AivailableError(
                f"{short(caller)} took a vote before and removed nobody: try at another node"
            )
        if self._taken_out is not None and self._taken_out[0] != node:
            raise AivailableError(
                f"another node is being removed; try again in {TAKEN_OUT_S:.0f} s"
            )

    def _settle_taken_out(self) -> None:
        """The node is removed by now, or it may have its vote again."""
        if self._taken_out is None:
            return
        node, caller, until_s = self._taken_out
        if self._joined(node) is None:
            self._taken_out = None
        elif self._clock.monotonic() > until_s:
            self._taken_out = None
            self._retiring.pop(node, None)
            self._doubted[caller] = self._clock.monotonic() + DOUBT_S
            log.warning(
                "%s asked for the vote of %s and did not remove it: it may vote again",
                *(short(caller), short(node)),
            )

    async def _hand_over(self, caller: NodeId, _arguments: Mapping[str, str]) -> Mapping[str, str]:
        """An operator takes this leader out: another leads first, made a voter where there is
        none."""
        if not self._raft.is_leader:
            return {}
        now_s = self._clock.monotonic()
        if caller not in self._cluster.state.members:
            raise AivailableError("only members take members out")
        if now_s - self._handed_over_s < HAND_OVER_PAUSE_S:
            raise AivailableError(
                f"this node was asked to hand over a moment ago; try again in"
                f" {HAND_OVER_PAUSE_S:.0f} s"
            )
        self._handed_over_s = now_s
        self._retire_for_good(self._node)
        try:
            await self._make_way()
        finally:
            # The new leader keeps count of who retires; if it comes to nothing, nobody does.
            self._retiring.pop(self._node, None)
        return {}
