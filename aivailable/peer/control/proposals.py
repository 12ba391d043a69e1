"""Proposing commands: ids that never repeat, a deadline, and the outcome.

A timeout means unknown, not failed: Raft retries the same bytes until the deadline, and `apply`
answers repeats from its outcome table. Sequence numbers are reserved in blocks in home, so that
they grow across restarts without a write for each command.

Not to be confused with `raft.proposals`, which brings the bytes to the leader.
"""

from __future__ import annotations

from aivailable.core.ids import CommandId, NodeId, short
from aivailable.core.state.codec import encode_command
from aivailable.core.state.commands import Body, Command
from aivailable.core.state.levels import needed, why_not_yet
from aivailable.core.state.records import Control
from aivailable.errors import ConfigError, ProposalRejected, ProposalUnknown
from aivailable.peer.control.replicated import ReplicatedState
from aivailable.peer.ports import Clock, Home
from aivailable.raft.node import RaftNode

PROPOSE_DEADLINE_S = 5.0
SEQUENCE_FILE = "sequence"
SEQUENCE_BLOCK = 4096
REASON_MAX_CHARS = 300


class CommandNumbers:
    """Numbers that only grow for this node, whatever happens to the process."""

    def __init__(self, home: Home) -> None:
        self._home = home
        stored = home.load(SEQUENCE_FILE)
        try:
            self._next = int(stored.decode()) if stored else 1
        except ValueError as error:
            raise ConfigError(
                f"the file {SEQUENCE_FILE!r} in home is damaged; restore it from a backup, or "
                "start with a new --home"
            ) from error
        self._reserved = self._next

    def take(self) -> int:
        """The next number. Raises OSError when a block cannot be reserved in home."""
        if self._next >= self._reserved:
            reserved = self._next + SEQUENCE_BLOCK
            self._home.save(SEQUENCE_FILE, str(reserved).encode())
            # Only now: when the disk refuses, the next take must try to reserve again.
            self._reserved = reserved
        number = self._next
        self._next += 1
        return number


class Proposer:
    """Puts this node's commands into the log of one cluster."""

    def __init__(
        self,
        node: NodeId,
        sequence: CommandNumbers,
        clock: Clock,
        raft: RaftNode,
        replicated: ReplicatedState,
    ) -> None:
        self._node = node
        self._numbers = sequence
        self._clock = clock
        self._raft = raft
        self._replicated = replicated

    async def propose(
        self,
        body: Body,
        *,
        actor: str,
        reason: str,
        control: Control | None = None,
        deadline_s: float = PROPOSE_DEADLINE_S,
    ) -> None:
        """Returns when the command is applied here.

        Raises ProposalRejected (applied and refused, or not proposed: `feature_level` while a
        member runs too old code for it), ProposalUnknown (deadline), SchemaError (larger than
        COMMAND_MAX_BYTES).
        """
        state, level = self._replicated.state, needed(body)
        if level > state.feature_level:
            raise ProposalRejected(
                "feature_level", why_not_yet(state.members, level, state.feature_level)
            )
        ended = state.dissolved
        if ended is not None:
            # `apply` would refuse it; an ended cluster's log shall not grow by refusals.
            raise ProposalRejected("dissolved", f"this cluster has ended in {short(ended.into)}")
        command = Command(
            command_id=CommandId(self._node, self._numbers.take()),
            body=body,
            actor=actor,
            reason=reason[:REASON_MAX_CHARS],
            proposed_at_ms=self._clock.wall_ms(),
            control=control,
            level=level,
        )
        try:
            await self._raft.propose(
                encode_command(command),
                applied=lambda: self._replicated.applied(command.command_id),
                deadline_s=deadline_s,
            )
        except ProposalUnknown as error:
            if self._raft.leader is not None:
                raise
            raise ProposalUnknown(
                "no majority of the voters is up, so nothing can be changed now (serving goes on)"
            ) from error
        outcome = self._replicated.outcome(command)
        if outcome is None:
            # A snapshot replaced the state and its table no longer holds us: rare, and unknown.
            raise ProposalUnknown("the outcome of this change is not known; check and try again")
        if not outcome.accepted:
            raise ProposalRejected(outcome.code, outcome.message)
