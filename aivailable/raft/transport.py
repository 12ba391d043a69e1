"""Between the library and the links: every message passes here, both ways.

Owns: which linked member is a voter, an observer or nobody; the guards on what goes out and comes
in; and that a message leaves only when what it promises is on disk. It must not open connections
(that is the Link's) nor keep Raft state. Built by node.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from aivailable.core.ids import NodeId
from aivailable.errors import CodeTooOld, SchemaError
from aivailable.raft import codec, library
from aivailable.raft.consensus import Consensus
from aivailable.raft.election import Election
from aivailable.raft.figures import RaftTally
from aivailable.raft.guards import Ack, Guards, Message, as_heartbeat, keep_matching, snapshot_known
from aivailable.raft.journal import Journal
from aivailable.raft.library import StableNode
from aivailable.raft.machine import Link
from aivailable.raft.snapshot import SNAPSHOT_MAX_BYTES, Snapshots, unseal
from aivailable.raft.speakers import Speakers
from aivailable.raft.store import Durability, StoreDamaged

log = logging.getLogger(__name__)

HOLD_S = 0.05
"""A follower that cannot be served now counts as disconnected for this long (D12)."""
OUTBOX_MAX_MESSAGES = 8_192
"""Messages that wait for the disk; beyond it they are lost, as on a bad network."""
_NEVER_SENT = ("apply_command", "apply_command_response")
"""The library's forwarding of commands: proposals have a deadline and retries of their own."""
_OF_LEADER = ("append_entries", "timeout_now")
"""These promise no more than the term they speak in; votes and acknowledgements the whole log."""
_COUNTED = ("next_node_idx", "receiving", "response_vote", "pre_vote_granted", "newer_term")
"""What a voter says that may change a count; from another incarnation of it, it counts nothing."""
_PROMISES_NOTHING = (
    *("pre_vote", "pre_vote_granted", "receiving", "submit"),
    *("who_votes", "voters_are"),
)
_OF_VOTERS = ("append_entries", "request_vote", "pre_vote", "timeout_now", "newer_term")
"""What may move a term, an election or the log. The rest is checked where it is counted."""


class RaftTransport(library.Transport):  # type: ignore[misc]
    """The library's Transport over a Link."""

    def __init__(
        self,
        link: Link,
        *,
        disk: Durability,
        journal: Journal,
        snapshots: Snapshots,
        guards: Guards,
        tally: RaftTally,
        clock: Callable[[], float],
        on_submit: Callable[[NodeId, bytes], None],
        wake: Callable[[], None],
    ) -> None:
        super().__init__(None, None, None)
        self._link = link
        self._disk = disk
        self._journal = journal
        self._snapshots = snapshots
        self._guards = guards
        self._tally = tally
        self._clock = clock
        self._on_submit = on_submit
        self._wake = wake
        self._linked: dict[NodeId, None] = {}
        self._observers: dict[NodeId, None] = {}
        self._held_until_s: dict[NodeId, float] = {}
        self._outbox: deque[tuple[int, NodeId, bytes]] = deque()
        self._incoming: dict[NodeId, bytearray] = {}
        self._incarnations: dict[NodeId, int] = {}
        self._consensus: Consensus | None = None
        self._election: Election | None = None
        self._speakers: Speakers | None = None
        self.forgetful: NodeId | None = None
        """A voter that came back without its log: the leader takes its vote away."""

    def attach(self, consensus: Consensus, election: Election) -> None:
        """The library is built with its transport, so the transport learns of it afterwards."""
        self._consensus, self._election = consensus, election
        self._speakers = Speakers(
            consensus,
            linked=lambda: self._linked,
            clock=self._clock,
            guards=self._guards,
            send=self.post,
        )

    @property
    def consensus(self) -> Consensus:
        if self._consensus is None:
            raise RuntimeError("the transport is not attached yet")
        return self._consensus

    @property
    def election(self) -> Election:
        if self._election is None:
            raise RuntimeError("the transport is not attached yet")
        return self._election

    @property
    def speakers(self) -> Speakers:
        if self._speakers is None:
            raise RuntimeError("the transport is not attached yet")
        return self._speakers

    # Links, told by node.

    def link_up(self, node: NodeId) -> None:
        self._linked[node] = None
        self._incoming.pop(node, None)
        self.classify(node)
        self._wake()

    def link_down(self, node: NodeId) -> None:
        if node not in self._linked:
            return
        del self._linked[node]
        self._incoming.pop(node, None)
        self._snapshots.cancelTransmisstion(StableNode(node))
        self.speakers.link_lost(node)
        self.classify(node)
        self.election.link_lost(node)
        self._wake()

    def set_observers(self, observers: tuple[NodeId, ...]) -> None:
        self._observers = dict.fromkeys(observers)
        for node in list(self._linked):
            self.classify(node)

    def classify(self, node: NodeId) -> None:
        """Tell the library what this member is to it now: voter, observer, or not there."""
        consensus, peer = self.consensus, StableNode(node)
        self._held_until_s.pop(node, None)
        linked = node in self._linked
        if consensus.is_other_voter(node):
            consensus.forget_observer(node)
            (self._onNodeConnected if linked else self._onNodeDisconnected)(peer)
            return
        fed = linked and node in self._observers and consensus.voter_id() is not None
        # Who hears of its removal before that is committed may hold the longest log and yet
        # neither stand nor vote: if the leader is lost then, nobody could be elected.
        fed = fed and not consensus.is_being_removed(node)
        if fed and not consensus.is_fed_observer(node):
            self._onReadonlyNodeConnected(peer)
        elif fed:
            # Known already, but perhaps held back a moment ago: without this it stays cut off.
            self._onNodeConnected(peer)
        elif consensus.is_fed_observer(node):
            self._onReadonlyNodeDisconnected(peer)
        else:
            self._onNodeDisconnected(peer)

    def classify_all(self) -> None:
        for node in list(self._linked):
            self.classify(node)

    def release_held(self) -> None:
        """Before a tick: who was held back long enough counts as connected again."""
        now = self._clock()
        for node, until_s in list(self._held_until_s.items()):
            if until_s <= now:
                self.classify(node)

    # Called by the library.

    def addNode(self, node: StableNode) -> None:  # noqa: N802
        if self._consensus is not None:
            self.classify(node.id)

    def dropNode(self, node: StableNode) -> None:  # noqa: N802
        """A voter that is removed goes on receiving the log, as an observer, while it is linked."""
        if self._consensus is not None:
            self._onNodeDisconnected(node)
            self._observers[node.id] = None
            self.classify(node.id)

    def send(self, node: StableNode, message: Message) -> bool:
        kind = message["type"]
        if kind in _NEVER_SENT:
            return False
        if "serialized" in message:
            if message["serialized"] is None:
                self._hold(node.id)
                return False
            if self._guards.snapshot_commit:
                message = message | {"commit_index": 0}
        if kind == "request_vote" and self.election.is_transfer(message["term"]):
            message = message | {"transfer": True}
        sent = self.post(node.id, message)
        if not sent and kind == "append_entries":
            self._hold(node.id)
        return sent

    def destroy(self) -> None:
        self._linked.clear()
        self._outbox.clear()

    # Out.

    def post(self, node: NodeId, message: Message) -> bool:
        """Send, or queue until what the message promises is on disk. False: not sent."""
        term, incarnation = self.consensus.current_term(), self._journal.incarnation
        data = codec.encode(term, message, incarnation)
        kind = message["type"]
        needs = self._disk.position
        if kind in _OF_LEADER:
            needs = self._journal.term_position
        elif kind in _PROMISES_NOTHING:
            needs = 0
        if needs > self._disk.synced and self._guards.synced_promises:
            if len(self._outbox) >= OUTBOX_MAX_MESSAGES:
                self._tally.unsent += 1
                return False
            self._outbox.append((needs, node, data))
            return True
        return self._hand_over(node, data)

    def flush(self) -> None:
        """After a sync: what waited for it leaves, in order."""
        while self._outbox and self._outbox[0][0] <= self._disk.synced:
            _, node, data = self._outbox.popleft()
            self._hand_over(node, data)

    def _hand_over(self, node: NodeId, data: bytes) -> bool:
        sent = self._link.send(node, data)
        self._tally.unsent += not sent
        return sent

    def _hold(self, node: NodeId) -> None:
        self._held_until_s[node] = self._clock() + HOLD_S
        self._onNodeDisconnected(StableNode(node))

    # In.

    def receive(self, node: NodeId, data: bytes) -> None:
        """One message of a linked member. A malformed one is dropped, counted and logged."""
        if node not in self._linked:
            return
        try:
            term, message, incarnation = codec.decode(data)
        except SchemaError as error:
            self._tally.malformed += 1
            log.warning("raft message of %s dropped: %s", node, error)
            return
        self._incarnations[node] = incarnation
        if message["type"] in _COUNTED and self._forgot(node, incarnation):
            self.forgetful = node
        else:
            self._dispatch(node, term, message)
        self._wake()

    def incarnation(self, node: NodeId) -> int | None:
        """Which life of this member was heard last."""
        return self._incarnations.get(node)

    def _forgot(self, node: NodeId, incarnation: int) -> bool:
        """Whether the configuration counts this member, but in another life."""
        consensus = self.consensus
        return (
            self._guards.incarnations
            and consensus.is_other_voter(node)
            and not consensus.is_voter((node, incarnation))
        )

    def _may_move(self, node: NodeId, term: int, message: Message) -> bool:
        """Whether this member may say this."""
        if message["type"] not in _OF_VOTERS:
            return True
        if self.speakers.may_speak(node, max(term, message.get("term", 0))):
            return True
        if message["type"] == "newer_term" and self.speakers.may_tell_term(node, term):
            return True
        self._tally.not_of_voters += 1
        return False

    def _dispatch(self, node: NodeId, term: int, message: Message) -> None:
        if not self._may_move(node, term, message):
            return
        match message["type"]:
            case "append_entries":
                self._append_entries(node, message)
            case "next_node_idx":
                self._acknowledged(node, term, message)
            case "request_vote":
                if self.election.may_vote(message):
                    self._deliver(node, message)
            case "response_vote":
                if message["term"] == self.consensus.current_term() and self.election.first_vote(
                    node, message["term"]
                ):
                    self._deliver(node, message)
            case "timeout_now":
                if node == self.consensus.leader_id():
                    self.election.asked_to_lead()
                    self._deliver(node, message)
            case "pre_vote":
                self.election.pre_vote(node, message)
            case "pre_vote_granted":
                self.election.pre_vote_granted(node, message)
            case "receiving":
                self.consensus.note_alive(node)
            case "newer_term":
                if term > self.consensus.current_term():
                    self.consensus.step_down(term)
            case "submit":
                self._on_submit(node, message["command"])
            case "who_votes":
                self.post(node, {"type": "voters_are", "voters": self.consensus.voters()})
            case "voters_are":
                self.speakers.told(node, frozenset(message["voters"]))

    def _deliver(self, node: NodeId, message: Message) -> None:
        self._onMessageReceived(StableNode(node), message)
        if self.consensus.members_changed():
            self.consensus.follow_members()
            self.classify_all()

    def _append_entries(self, node: NodeId, message: Message) -> None:
        consensus = self.consensus
        if message["term"] < consensus.current_term():
            # A leader that pre-vote keeps alive although we are in a later term: without this we
            # would ignore each other for ever.
            self.post(node, {"type": "newer_term"})
            return
        self.election.heard_leader()
        if "serialized" in message:
            self._snapshot(node, message)
            return
        ack: Ack | None = None
        if self._guards.keep_matching:
            message, ack = keep_matching(
                message,
                consensus.entries(),
                consensus.raftCommitIndex,
                fast_backtrack=self._guards.fast_backtrack,
            )
        self._deliver(node, message)
        if ack is not None:
            self._acknowledge(node, ack)

    def _acknowledge(self, node: NodeId, ack: Ack) -> None:
        answer = {
            "type": "next_node_idx",
            "next_node_idx": ack.next_index,
            "reset": ack.reset,
            "success": ack.success,
        }
        self.post(node, answer)

    def _acknowledged(self, node: NodeId, term: int, message: Message) -> None:
        consensus = self.consensus
        if self._guards.ack_term and term != consensus.current_term():
            return
        beyond = message["next_node_idx"] > consensus.last_entry()[1] + 1
        if not consensus.tracks(node) or beyond:
            return
        self._deliver(node, message)

    def _snapshot(self, node: NodeId, message: Message) -> None:
        commit = 0 if self._guards.snapshot_commit else message["commit_index"]
        message["commit_index"] = commit
        chunk = message["serialized"]
        sealed = None if chunk is None else self._collect(node, *chunk)
        if sealed is None:
            self._deliver(node, as_heartbeat(message, commit))
            if chunk is not None:
                self.post(node, {"type": "receiving"})
            return
        try:
            snapshot = unseal(sealed)
        except StoreDamaged as error:
            log.warning("snapshot of %s dropped: %s", node, error)
            self._deliver(node, as_heartbeat(message, commit))
            return
        consensus = self.consensus
        if self._why_refused() is not None:
            self._deliver(node, as_heartbeat(message, commit))
            return
        known = snapshot_known(consensus.entries(), consensus.raftCommitIndex, snapshot.last)
        if known is not None and self._guards.newer_snapshot:
            self._deliver(node, as_heartbeat(message, known))
            self._acknowledge(node, Ack(known + 1, reset=True, success=True))
            return
        self._snapshots.adopt(sealed, durable=False)
        self._deliver(node, message)
        # Read anew: what was just delivered may have been refused.
        why = self._why_refused()
        if why is not None:
            log.error("the snapshot of %s is not taken: %s", node, why)
            return
        consensus.rebase_members(snapshot.voters)
        consensus.after_restore()
        self.classify_all()

    def _why_refused(self) -> CodeTooOld | None:
        return self._snapshots.refused

    def _collect(self, node: NodeId, data: bytes, is_first: bool, is_last: bool) -> bytes | None:
        """Put chunks together; the whole when the last has come, None before or out of step."""
        if is_first:
            self._incoming = {node: bytearray()}
        collected = self._incoming.get(node)
        if collected is None:
            return None
        collected += data
        if len(collected) > SNAPSHOT_MAX_BYTES:
            log.error("snapshot of %s is over %d bytes", node, SNAPSHOT_MAX_BYTES)
            del self._incoming[node]
            return None
        if not is_last:
            return None
        del self._incoming[node]
        return bytes(collected)
