"""When an election may begin: pre-vote, leader stickiness, and the hint of a lost link.

Owns: the gate in front of the library's election timer. No term is spent unless a majority of the
voters says that it would vote and has not heard from a leader for the shortest election time
(Ongaro, dissertation §9.6 and §4.2.3); so a cut-off or removed node cannot drive terms up, and two
that ask at once do not split the vote. It must not touch the log or a link.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from aivailable.core.ids import NodeId
from aivailable.raft.consensus import AT_ONCE, Consensus
from aivailable.raft.guards import Guards, Message
from aivailable.raft.settings import RaftSettings

LOST_LEADER_JITTER_S = 0.15
"""After the link to the leader broke, the first pre-vote comes within this long."""
PRE_VOTE_RETRY = (0.2, 0.6)
"""Of the shortest election time: pre-vote rounds cost no term and no write, so they repeat fast."""
VOTE_RETRY = (0.5, 1.0)
"""Of the shortest election time: a candidate that is not elected by then asks again. The library
would wait a whole election time more after a split vote."""
CLASH = 0.2
"""Of the shortest election time: two that ask within this long would split the vote. So who has
said yes to one says no to others and asks for nothing itself for as long, and of two that ask at
once the greater goes first. It is a lease, not a vote: who does not make use of it blocks nobody
for long."""
SILENT_ELECTIONS = 3.0
"""A leader that was silent for this many of the longest election times leads no more."""


class Election:
    """Pre-vote of one node."""

    def __init__(
        self,
        node_id: NodeId,
        consensus: Consensus,
        *,
        clock: Callable[[], float],
        rng: random.Random,
        settings: RaftSettings,
        guards: Guards,
        send: Callable[[NodeId, Message], bool],
    ) -> None:
        self._node_id = node_id
        self._consensus = consensus
        self._clock = clock
        self._rng = rng
        self._settings = settings
        self._guards = guards
        self._send = send
        self._heard_s = AT_ONCE
        self._campaign_term = -1
        self._asked_s = AT_ONCE
        self._favoured: NodeId | None = None
        self._favoured_s = AT_ONCE
        self._round = 0
        self._granted: dict[NodeId, None] | None = None
        self._counted: dict[NodeId, None] = {}
        self._counted_term = -1
        self._transfer_term = -1
        self.suspended = False
        """While the disk takes nothing, this node neither campaigns nor helps anybody to."""

    def before_tick(self) -> None:
        """Turn an expired election timer into a pre-vote round, unless one has just been won."""
        consensus = self._consensus
        now = self._clock()
        deadline = consensus.election_deadline_s()
        if consensus.is_leading() or consensus.voter_id() is None or deadline >= now:
            return
        if self.suspended or not consensus.counts_itself():
            self._postpone(now)
            return
        if not self._guards.pre_vote or deadline <= 0:
            return  # Won, or asked for by the leader (TimeoutNow sets zero).
        self._postpone(now)
        others = consensus.other_voters()
        if not others:
            consensus.set_election_deadline(AT_ONCE)
            return
        if self._favours_another(self._node_id):
            return
        self._asked_s = now
        self._round += 1
        self._granted = {}
        _, last_index, last_term = consensus.last_entry()
        for node in others:
            self._send(
                node,
                {
                    "type": "pre_vote",
                    "term": consensus.current_term() + 1,
                    "last_log_term": last_term,
                    "last_log_index": last_index,
                    "round": self._round,
                },
            )

    def after_tick(self) -> None:
        """A campaign that has just begun may fail: by a split vote, or a vote that was lost."""
        consensus = self._consensus
        if not self._guards.pre_vote or not consensus.is_candidate():
            return
        if consensus.current_term() != self._campaign_term:
            self._campaign_term = consensus.current_term()
            self._wait(self._clock(), VOTE_RETRY)

    def heard_leader(self) -> None:
        """A leader of our term or a later one spoke."""
        self._heard_s = self._clock()
        self._granted = None

    def link_lost(self, node: NodeId) -> None:
        """A broken link to the leader is a hint: ask soon, and no longer defend that leader."""
        if not self._guards.pre_vote or node != self._consensus.leader_id():
            return
        self._heard_s = AT_ONCE
        soon = self._clock() + self._rng.uniform(0.0, LOST_LEADER_JITTER_S)
        if self._consensus.election_deadline_s() > soon:
            self._consensus.set_election_deadline(soon)

    def pre_vote(self, node: NodeId, message: Message) -> None:
        """Another voter asks whether we would vote for it."""
        consensus = self._consensus
        if consensus.voter_id() is None or self.sticky():
            return
        _, last_index, last_term = consensus.last_entry()
        theirs = (message["last_log_term"], message["last_log_index"])
        if theirs < (last_term, last_index):
            return
        if message["term"] <= consensus.current_term():
            # It has the longer log and we the later term: untold, neither could ever be elected.
            self._send(node, {"type": "newer_term"})
            return
        if self._favours_another(node):
            return
        if self._is_recent(self._asked_s):
            if (*theirs, node) < (last_term, last_index, self._node_id):
                return
            self._granted = None
            self._asked_s = AT_ONCE
        self._favoured, self._favoured_s = node, self._clock()
        self._send(node, {"type": "pre_vote_granted", "round": message["round"]})

    def _favours_another(self, node: NodeId) -> bool:
        return self._favoured != node and self._is_recent(self._favoured_s)

    def _is_recent(self, at_s: float) -> bool:
        return self._clock() - at_s < CLASH * self._settings.election_min_s

    def pre_vote_granted(self, node: NodeId, message: Message) -> bool:
        """Another voter would vote for us. True: that made a majority, tick now."""
        consensus = self._consensus
        granted = self._granted
        if granted is None or message["round"] != self._round or consensus.is_leading():
            return False
        if not consensus.is_other_voter(node):
            return False
        granted[node] = None
        if 2 * (len(granted) + 1) <= len(consensus.other_voters()) + 1:
            return False
        self._granted = None
        if consensus.can_reach_any():
            consensus.set_election_deadline(AT_ONCE)
        return True

    def leader_is_silent(self) -> bool:
        """Whether who led last has said nothing for long: it may have stepped down, and without a
        majority nobody follows it, so that no new term tells us."""
        return self._clock() - self._heard_s > self._settings.election_max_s * SILENT_ELECTIONS

    def sticky(self) -> bool:
        """Whether we lead, or have heard from a leader too lately to help depose it."""
        if self._consensus.is_leading():
            return True
        return self._clock() - self._heard_s < self._settings.election_min_s

    def may_vote(self, message: Message) -> bool:
        """Whether a vote request gets to the library: not past a live leader, unless it asked."""
        return not self._guards.pre_vote or bool(message.get("transfer")) or not self.sticky()

    def first_vote(self, node: NodeId, term: int) -> bool:
        """Whether to count this vote: the library would count anybody's, and twice."""
        if term != self._counted_term:
            self._counted_term, self._counted = term, {}
        if node in self._counted or not self._consensus.is_other_voter(node):
            return False
        self._counted[node] = None
        return True

    def asked_to_lead(self) -> None:
        """The leader hands over: our next vote request says so."""
        self._transfer_term = self._consensus.current_term() + 1

    def is_transfer(self, term: int) -> bool:
        return term == self._transfer_term

    def _postpone(self, now_s: float) -> None:
        self._wait(now_s, PRE_VOTE_RETRY)

    def _wait(self, now_s: float, share: tuple[float, float]) -> None:
        pause_s = self._rng.uniform(*share) * self._settings.election_min_s
        self._consensus.set_election_deadline(now_s + pause_s)
