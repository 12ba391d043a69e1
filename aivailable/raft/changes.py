"""Changes of who votes and who leads, each until it is in effect or known not to be.

Owns: the steps and waiting of adding, removing, handing over, and of learning what the leader has
committed. It must not send or persist. Built by node.
"""

from __future__ import annotations

from collections.abc import Callable

from aivailable.errors import ProposalRejected, ProposalUnknown
from aivailable.raft import library
from aivailable.raft.consensus import AT_ONCE, Consensus
from aivailable.raft.membership import Verb, Voter, change_command, names
from aivailable.raft.proposals import Proposals

LEARN_DEADLINE_S = 1.0
"""How long a node waits for its log to show what its caller knows of already."""


class VoterChanges:
    """Changes through one node's Raft."""

    def __init__(
        self,
        consensus: Consensus,
        proposals: Proposals,
        ambient: library.Ambient,
        wake: Callable[[], None],
    ) -> None:
        self._consensus = consensus
        self._proposals = proposals
        self._ambient = ambient
        self._wake = wake

    async def change(self, verb: Verb, voter: Voter, deadline_s: float) -> None:
        """Until the change is committed and applied here. See RaftNode.add_voter."""
        consensus = self._consensus

        def in_effect() -> bool:
            if verb == "add":
                return voter in consensus.applied_voters()
            return voter[0] not in names(consensus.applied_voters())

        if in_effect():
            return
        codes: list[int] = []

        def answered(_result: object, code: int) -> None:
            codes.append(code)
            self._proposals.poke()

        with library.acting(self._ambient):
            consensus.append(change_command(verb, *voter), answered)
        self._wake()
        await self._proposals.until(lambda: in_effect() or bool(codes), deadline_s)
        if in_effect():
            return
        if codes == [library.DENIED]:
            raise ProposalRejected("busy", "another change of voters is under way: try again")
        raise ProposalUnknown("leadership was lost during a change of voters")

    async def hand_over(self, again_s: float, deadline_s: float) -> None:
        """Until another voter leads; asked anew every `again_s`. See RaftNode."""
        consensus, clock = self._consensus, self._ambient.clock
        asked_at_s = AT_ONCE

        def handed_over() -> bool:
            nonlocal asked_at_s
            if not consensus.is_leading():
                return True
            if clock() - asked_at_s >= again_s:
                codes: list[int] = []
                with library.acting(self._ambient):
                    consensus.transferLeadership(None, lambda _result, code: codes.append(code))
                if codes == [library.SUCCESS]:
                    asked_at_s = clock()  # Denied means: not caught up yet, ask again.
            return False

        if consensus.is_leading() and not consensus.other_voters():
            raise ProposalRejected("no_other_voter", "there is no other voter to hand over to")
        await self._proposals.until(handed_over, deadline_s)

    async def learn(self, condition: Callable[[], bool], code: str, message: str) -> None:
        """Until our log shows it, for a moment; ProposalRejected with `code` if it does not."""
        try:
            await self._proposals.until(condition, LEARN_DEADLINE_S)
        except ProposalUnknown:
            raise ProposalRejected(code, message) from None
