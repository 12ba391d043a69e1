"""From whom a message may move a term, an election or the log: from voters only.

Owns that decision. Who votes is what our own log says. A node that is behind may not know the
voters of today, so it asks the members that it is linked to: the word of a voter that it does know
counts. If it has had no link to one of them for ALONE_S, the word of half of the others counts. A
node that does not vote, and that nobody else calls a voter, is not heard, whatever it sends. This
module must not send or keep Raft state. Built by transport.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from aivailable.core.ids import NodeId
from aivailable.raft.consensus import Consensus
from aivailable.raft.guards import TERM_JUMP_MAX, Guards, Message

ASK_EVERY_S = 0.2
"""A node that is refused goes on sending; the others are asked no oftener than this."""
TOLD_LASTS_S = 10.0
"""What a member said about the voters counts for this long; then it is asked again."""
NEWS_OF_FORMER_MAX = 3
"""Times that a voter of former days may say that it is in a later term than ours. It campaigned
before it heard that it votes no longer, and could never follow again ..."""
NEWS_OF_FORMER_TERMS = 100
"""... and by at most this many terms."""
ALONE_S = 10.0
"""Without a link to any voter that we know for this long, the word of others may do. A node that
has just started links to all within this time."""


class Speakers:
    """Of one node."""

    def __init__(
        self,
        consensus: Consensus,
        *,
        linked: Callable[[], Collection[NodeId]],
        clock: Callable[[], float],
        guards: Guards,
        send: Callable[[NodeId, Message], bool],
    ) -> None:
        self._consensus = consensus
        self._linked = linked
        self._clock = clock
        self._guards = guards
        self._send = send
        self._told: dict[NodeId, tuple[frozenset[NodeId], float]] = {}
        self._news: dict[NodeId, int] = {}
        self._asked_s = float("-inf")
        self._voter_seen_s = clock()

    def may_speak(self, node: NodeId, term: int) -> bool:
        """Whether a message of this member, in this term, may move anything here. If not, the
        others are asked who votes, so that its next one may."""
        if self._jumps(term):
            return False
        if not self._guards.voters_only or self._consensus.is_other_voter(node):
            return True
        if self._is_named(node):
            return True
        self._ask(node)
        return False

    def may_tell_term(self, node: NodeId, term: int) -> bool:
        """Whether to believe this former voter that it is in a later term."""
        ahead = term - self._consensus.current_term()
        if not self._consensus.was_voter(node) or not 0 < ahead <= NEWS_OF_FORMER_TERMS:
            return False
        count = self._news.get(node, 0) + 1
        self._news[node] = count
        return count <= NEWS_OF_FORMER_MAX

    def told(self, node: NodeId, voters: frozenset[NodeId]) -> None:
        """A member answered who votes as far as it knows."""
        self._told[node] = (voters, self._clock())

    def link_lost(self, node: NodeId) -> None:
        """What it said counts no longer; and if it votes, from now on we may be alone."""
        self._told.pop(node, None)
        if self._consensus.is_other_voter(node):
            self._voter_seen_s = self._clock()

    def _jumps(self, term: int) -> bool:
        """Whether the term is further than elections ever come. A fresh log knows no term yet."""
        own = self._consensus.current_term()
        return self._guards.term_jump and own > 0 and term > own + TERM_JUMP_MAX

    def _is_named(self, node: NodeId) -> bool:
        """Whether others say that it votes; its own word does not count."""
        now_s = self._clock()
        others = [other for other in self._linked() if other != node]
        naming = [other for other in others if self._names(other, node, now_s)]
        known = self._consensus.other_voters()
        if any(other in known for other in others):
            self._voter_seen_s = now_s
            return any(other in known for other in naming)
        if not known and self._consensus.counts_itself():
            return False  # The only voter: without it nobody can have become one.
        return (
            now_s - self._voter_seen_s >= ALONE_S
            and bool(naming)
            and 2 * len(naming) >= len(others)
        )

    def _names(self, other: NodeId, node: NodeId, now_s: float) -> bool:
        voters, at_s = self._told.get(other, (frozenset(), now_s))
        return node in voters and now_s - at_s < TOLD_LASTS_S

    def _ask(self, about: NodeId) -> None:
        now_s = self._clock()
        if now_s - self._asked_s < ASK_EVERY_S:
            return
        self._asked_s = now_s
        for other in list(self._linked()):
            if other != about:
                self._send(other, {"type": "who_votes"})
