"""From "please commit this" to "committed, and applied here": offers, retries, deadlines.

Owns: who waits for what, sending a command to the leader again until it is applied, and the
leader's side of that. A command is bytes that carry their own identity, so that offering it twice
is harmless. It must not decide who leads.

Not to be confused with `peer.control.proposals`, which makes commands and waits for their outcome.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from aivailable.core.ids import NodeId
from aivailable.errors import ProposalRejected, ProposalUnknown
from aivailable.raft import library
from aivailable.raft.allowance import Allowance
from aivailable.raft.consensus import Consensus
from aivailable.raft.figures import RaftTally
from aivailable.raft.transport import RaftTransport

log = logging.getLogger(__name__)

WAITING_MAX = 1_024
"""Proposals of this node that are under way at once; more are refused."""
OFFERED_MAX_COMMANDS = 2_048
"""Commands in the leader's log or queue and not applied yet; fewer than the queue takes."""
BARRIER_TOKEN_BYTES = 16

Authorize = Callable[[NodeId, bytes], bool]


class Proposals:
    """The proposals of one node, and what other nodes forwarded to it."""

    def __init__(
        self,
        node_id: NodeId,
        *,
        clock: Callable[[], float],
        retry_s: float,
        tally: RaftTally,
        authorize: Authorize,
        wake: Callable[[], None],
    ) -> None:
        self._node_id = node_id
        self._clock = clock
        self._retry_s = retry_s
        self._tally = tally
        self._authorize = authorize
        self._wake = wake
        self._consensus: Consensus | None = None
        self._transport: RaftTransport | None = None
        self._waiting: dict[int, asyncio.Event] = {}
        self._number = 0
        self._awaited: dict[bytes, int] = {}
        self._seen: dict[bytes, None] = {}
        self._offered: dict[bytes, None] = {}
        self._allowance = Allowance(clock)
        self._elections = 0
        self._closed = False

    def attach(self, consensus: Consensus, transport: RaftTransport) -> None:
        """Both are built after this and call into it."""
        self._consensus, self._transport = consensus, transport

    async def commit(
        self, command: bytes, deadline_s: float, applied: Callable[[], bool] | None
    ) -> None:
        """Until `command` (or, if given, `applied()`) is applied here. Raises ProposalUnknown."""
        self._awaited[command] = self._awaited.get(command, 0) + 1
        offered_at_s, elections = float("-inf"), -1

        def done() -> bool:
            nonlocal offered_at_s, elections
            if command in self._seen or (applied is not None and applied()):
                return True
            now = self._clock()
            if now - offered_at_s >= self._retry_s or elections != self._elections:
                offered_at_s, elections = now, self._elections
                self._offer(command)
            return False

        try:
            await self.until(done, deadline_s)
        finally:
            self._awaited[command] -= 1
            if not self._awaited[command]:
                del self._awaited[command]
                self._seen.pop(command, None)

    async def until(self, condition: Callable[[], bool], deadline_s: float) -> None:
        """Until `condition()`, asked after each apply, change of leader, and retry time.

        Raises ProposalUnknown after `deadline_s` or when the node stops, ProposalRejected when too
        many wait.
        """
        if len(self._waiting) >= WAITING_MAX:
            raise ProposalRejected("overloaded", f"{WAITING_MAX} proposals are under way already")
        loop = asyncio.get_running_loop()
        end_s = self._clock() + deadline_s
        self._number += 1
        number, moved = self._number, asyncio.Event()
        self._waiting[number] = moved
        try:
            while not self._closed:
                if condition():
                    return
                left_s = end_s - self._clock()
                if left_s <= 0:
                    raise ProposalUnknown(f"not known to be applied within {deadline_s:.1f} s")
                timer = loop.call_later(min(self._retry_s, left_s), moved.set)
                try:
                    await moved.wait()
                finally:
                    timer.cancel()
                moved.clear()
            raise ProposalUnknown("the node stopped while the proposal was under way")
        finally:
            del self._waiting[number]

    def poke(self) -> None:
        """Something may have come true: let everybody who waits look."""
        for moved in self._waiting.values():
            moved.set()

    def applied(self, command: bytes) -> None:
        """The library applied this command here (called for each, in log order)."""
        self._offered.pop(command, None)
        if command in self._awaited:
            self._seen[command] = None

    def leader_changed(self) -> None:
        """Offer everything again, to the new leader."""
        self._elections += 1
        self._offered.clear()
        self.poke()

    def close(self) -> None:
        self._closed = True
        self.poke()

    def forwarded(self, node: NodeId, command: bytes) -> None:
        """Another member asks us, as the leader, to commit this; silence means: try again."""
        if self._consensus is None or not self._consensus.is_leading():
            return
        if command in self._offered:
            return  # A repeat of what is under way.
        kind, payload = command[:1], command[1:]
        allowed = (kind == library.NO_OP and len(payload) <= BARRIER_TOKEN_BYTES) or (
            kind == library.REGULAR and self._authorize(node, payload)
        )
        if not allowed:
            self._tally.unauthorized += 1
            log.debug("a command forwarded by %s is none that it may propose: refused", node)
            return
        if not self._allowance.take(node, len(command)):
            self._tally.over_allowance += 1
            return
        self._accept(command)

    def _offer(self, command: bytes) -> None:
        consensus, transport = self._consensus, self._transport
        if consensus is None or transport is None:
            return
        if consensus.is_leading():
            self._accept(command)
            return
        leader = consensus.leader_id()
        if leader is not None and leader != self._node_id:
            transport.post(leader, {"type": "submit", "command": command})

    def _accept(self, command: bytes) -> None:
        """Into the leader's log, once while it is under way there."""
        if self._consensus is None or command in self._offered:
            return
        if len(self._offered) >= OFFERED_MAX_COMMANDS:
            return  # Full: whoever waits for it tries again.
        self._offered[command] = None
        self._consensus.append(command, None)
        self._wake()
