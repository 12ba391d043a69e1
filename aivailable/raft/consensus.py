"""PySyncObj itself, with the overrides that close its defects from the inside.

Owns: every touch of the library's private names but for the message boundary (transport): what is
applied and how (D10), how many membership changes are under way (D4), that the leader counts its
own copy of an entry only when it is on disk, and that the configuration is the fold of the log. It
must not send, sleep or know about links. Every call happens inside `library.acting`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from aivailable.core.ids import NodeId
from aivailable.errors import CodeTooOld
from aivailable.raft import library
from aivailable.raft.guards import Guards
from aivailable.raft.journal import Journal
from aivailable.raft.library import StableNode
from aivailable.raft.machine import Machine
from aivailable.raft.membership import Entry, Voter, after, in_force, names, parse_change
from aivailable.raft.settings import RaftSettings

log = logging.getLogger(__name__)

QUEUE_MAX_COMMANDS = 4_096
AT_ONCE = float("-inf")


def library_conf(settings: RaftSettings) -> Any:
    """The library's configuration: raft/DESIGN.md, "The settings of the library, and why"."""
    return library.SyncObjConf(
        autoTick=False,
        useFork=False,
        dynamicMembershipChange=True,
        commandsWaitLeader=False,
        commandsQueueSize=QUEUE_MAX_COMMANDS,
        # RaftNode sends once after each tick that made something new: one message carries all.
        appendEntriesUseBatch=True,
        appendEntriesPeriod=settings.heartbeat_s,
        appendEntriesBatchSizeBytes=settings.batch_bytes,
        raftMinTimeout=settings.election_min_s,
        raftMaxTimeout=settings.election_max_s,
        leaderFallbackTimeout=settings.leader_fallback_s,
        connectionTimeout=max(3.5, settings.election_max_s),
        logCompactionMinEntries=settings.compact_entries,
        logCompactionMinTime=settings.compact_s,
    )


class Consensus(library.SyncObj):  # type: ignore[misc]
    """One node's Raft. `None` for `voter` makes it an observer, which the library calls readonly.

    No properties: the library reads every attribute of the class while it constructs itself.
    """

    def __init__(
        self,
        voter: NodeId | None,
        voters: tuple[NodeId, ...],
        *,
        journal: Journal,
        machine: Machine,
        transport: Any,
        settings: RaftSettings,
        guards: Guards,
        on_applied: Callable[[bytes], None],
    ) -> None:
        self._journal = journal
        self._machine = machine
        self._guards = guards
        self._on_applied = on_applied
        self._counting = False
        self._too_old = False
        self._compact_bytes = settings.compact_bytes
        self._applied_voters = journal.base_voters
        self._in_force = in_force(journal.base_voters, journal.log)
        self._former: dict[NodeId, None] = dict.fromkeys(names(journal.base_voters))
        super().__init__(
            None if voter is None else StableNode(voter),
            [StableNode(other) for other in voters if other != voter],
            conf=library_conf(settings),
            nodeClass=StableNode,
            transport=transport,
        )

    # Overrides. The names are the library's, with its name mangling.

    def _onTick(self, timeToWait: float = 0.0) -> None:  # noqa: N802, N803
        self._counting = self._guards.synced_commit
        if self._journal.added_bytes > self._compact_bytes and not self._SyncObj__serializer.busy():
            self.forceLogCompaction()
        super()._onTick(timeToWait)

    def _SyncObj__applyLogEntries(self) -> bool:  # noqa: N802
        self._counting = False  # The tick has counted copies; from here on the whole log shows.
        if self._too_old:
            return False
        try:
            return bool(super()._SyncObj__applyLogEntries())
        except CodeTooOld as error:
            # State and applied index stay where they are, and agree; peer ends the process.
            self._too_old = True
            log.error("nothing is applied from here on: %s", error)
            return False

    def _SyncObj__onBecomeLeader(self) -> None:  # noqa: N802
        counting, self._counting = self._counting, False
        super()._SyncObj__onBecomeLeader()
        self._counting = counting

    def _SyncObj__getEntries(  # noqa: N802
        self,
        fromIDx: int | None,  # noqa: N803
        count: int | None = None,
        maxSizeBytes: int | None = None,  # noqa: N803
    ) -> list[Entry]:
        """While the leader counts copies, what is not on its own disk is not there."""
        if self._counting and fromIDx is not None and fromIDx > self._journal.synced_index:
            return []
        entries: list[Entry] = super()._SyncObj__getEntries(fromIDx, count, maxSizeBytes)
        return entries

    def _SyncObj__changeCluster(self, request: list[str]) -> bool:  # noqa: N802
        """The library never sets the index that its own guard asks for (D4, syncobj 1361)."""
        done = bool(super()._SyncObj__changeCluster(request))
        if done and self._guards.one_change:
            self._SyncObj__changeClusterIDx = self._journal[-1][1] + 1
        return done

    def _SyncObj__parseChangeClusterRequest(  # noqa: N802
        self, command: bytes
    ) -> list[str] | None:
        change = parse_change(command)
        return None if change is None else list(change[:2])

    def _SyncObj__doApplyCommand(self, command: bytes) -> None:  # noqa: N802
        """Never raises: the library would try the same entry again for ever (D10)."""
        kind = command[:1]
        if kind == library.REGULAR:
            try:
                self._machine.apply(command[1:])
            except CodeTooOld:
                raise
            except Exception:
                if not self._guards.total_apply:
                    raise
                log.exception("the machine raised; the entry is skipped, as on every other node")
        elif kind == library.MEMBERSHIP and (change := parse_change(command)) is not None:
            self._applied_voters = after(self._applied_voters, change)
            self._journal.members_changed = True  # Who was being removed may be fed from now on.
        self._on_applied(command)

    # What node, transport and election ask. Plain methods over private state.

    def restore(self, voters: tuple[Voter, ...]) -> None:
        """Restore the adopted snapshot; the journal was aligned with it before."""
        self._SyncObj__loadDumpFile(clearJournal=False)
        self.after_restore()
        self.rebase_members(voters)

    def after_restore(self) -> None:
        """What is in a snapshot is committed. Raises CodeTooOld if the machine cannot read it,
        RuntimeError if it was not loaded for another reason."""
        refused: CodeTooOld | None = self._SyncObj__serializer.refused
        if refused is not None:
            raise refused
        applied = self._SyncObj__raftLastApplied
        if len(self._journal) < 2 or self._journal[1][1] != applied:
            raise RuntimeError("pysyncobj did not load the snapshot; its log says why")
        committed = max(int(self.raftCommitIndex), applied)
        self._SyncObj__raftCommitIndex = committed
        self._journal.setRaftCommitIndex(committed)

    def rebase_members(self, voters: tuple[Voter, ...]) -> None:
        """The configuration that a snapshot brought."""
        self._journal.base_voters = voters
        self._applied_voters = voters
        self.follow_members()

    def follow_members(self) -> None:
        """Let the library's set of other voters be the fold of the log, whatever it did itself."""
        self._journal.members_changed = False
        self._former |= dict.fromkeys(self.voters())
        self._in_force = in_force(self._journal.base_voters, self._journal.log)
        own = self.voter_id()
        others = [StableNode(voter) for voter in self.voters() if voter != own]
        if self._SyncObj__otherNodes != set(others):
            self._SyncObj__updateClusterConfiguration(others)

    def members_changed(self) -> bool:
        return self._journal.members_changed

    def voters(self) -> tuple[NodeId, ...]:
        return names(self._in_force)

    def applied_voters(self) -> tuple[Voter, ...]:
        return self._applied_voters

    def counts_itself(self) -> bool:
        """Whether our own vote counts in the configuration in force."""
        own = self.voter_id()
        return own is not None and self.is_voter((own, self._journal.incarnation))

    def is_voter(self, voter: Voter) -> bool:
        """Whether the configuration in force counts this node in this incarnation."""
        return voter in self._in_force

    def was_voter(self, node: NodeId) -> bool:
        """Whether it has voted at some time that this process knows of."""
        return node in self._former

    def is_being_removed(self, node: NodeId) -> bool:
        """Whether the log takes this voter's vote away, but not for certain yet."""
        return node in names(self._applied_voters) and node not in self.voters()

    def voter_id(self) -> NodeId | None:
        """Our id if we are willing to vote, else None."""
        node = self._SyncObj__selfNode
        return None if node is None else str(node.id)

    def set_voter(self, voter: NodeId | None) -> None:
        """Play the other part on the same log from now on (the library asks only selfNode)."""
        self._SyncObj__selfNode = None if voter is None else StableNode(voter)
        self._SyncObj__setState(library.FOLLOWER_STATE)
        self._SyncObj__transferInProgress = False
        self.follow_members()

    def is_other_voter(self, node: NodeId) -> bool:
        return StableNode(node) in self._SyncObj__otherNodes

    def other_voters(self) -> list[NodeId]:
        return sorted(node.id for node in self._SyncObj__otherNodes)

    def is_leading(self) -> bool:
        return bool(self._SyncObj__raftState == library.LEADER_STATE)

    def is_candidate(self) -> bool:
        return bool(self._SyncObj__raftState == library.CANDIDATE_STATE)

    def leader_id(self) -> NodeId | None:
        node = self._SyncObj__raftLeader
        return None if node is None else str(node.id)

    def current_term(self) -> int:
        return int(self.raftCurrentTerm)

    def last_entry(self) -> Entry:
        return self._journal.log[-1]

    def entries(self) -> list[Entry]:
        return self._journal.log

    def election_deadline_s(self) -> float:
        return float(self._SyncObj__raftElectionDeadline)

    def set_election_deadline(self, at_s: float) -> None:
        self._SyncObj__raftElectionDeadline = at_s

    def can_reach_any(self) -> bool:
        return bool(self._SyncObj__connectedToAnyone())

    def step_down(self, term: int) -> None:
        """Another voter is in a later term: follow it there, without a vote."""
        self._SyncObj__setCurrentTerm(term, None)
        self._SyncObj__setState(library.FOLLOWER_STATE)
        self._SyncObj__raftLeader = None

    def resign(self) -> None:
        """Stop leading or campaigning, in the same term and with the same vote."""
        self._SyncObj__setState(library.FOLLOWER_STATE)
        self._SyncObj__raftLeader = None

    def replicate(self) -> None:
        """Leader: send what is new, or a heartbeat, to all that are connected."""
        self._SyncObj__sendAppendEntries()

    def append(self, command: bytes, callback: Callable[[object, int], None] | None) -> None:
        """Queue a command, type byte included; the next tick puts it into the leader's log."""
        self._applyCommand(command, callback)

    def tracks(self, node: NodeId) -> bool:
        return StableNode(node) in self._SyncObj__raftMatchIndex

    def match_index(self, node: NodeId) -> int:
        return int(self._SyncObj__raftMatchIndex.get(StableNode(node), 0))

    def note_alive(self, node: NodeId) -> None:
        """A follower shows life although it cannot acknowledge yet."""
        if StableNode(node) in self._SyncObj__lastResponseTime:
            self._SyncObj__lastResponseTime[StableNode(node)] = library.now_s()

    def is_fed_observer(self, node: NodeId) -> bool:
        return StableNode(node) in self._SyncObj__readonlyNodes

    def forget_observer(self, node: NodeId) -> None:
        """It votes now: keep its indices, drop only the label."""
        self._SyncObj__readonlyNodes.discard(StableNode(node))

    def compact(self) -> None:
        """Take a snapshot and cut the log at the next tick."""
        self.forceLogCompaction()
