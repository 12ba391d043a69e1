"""One member's Raft: opens it, ticks it, and is what the rest of the program talks to.

Owns: the tick task, the life from start to stop, and the public surface. It must not know what
commands mean or how bytes travel. Built by peer and simulation. See DESIGN.md beside this.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence

from aivailable.core.ids import NodeId
from aivailable.core.state.records import Role
from aivailable.errors import ProposalError, ProposalRejected, ProposalUnknown
from aivailable.raft import library
from aivailable.raft.changes import VoterChanges
from aivailable.raft.consensus import AT_ONCE, Consensus
from aivailable.raft.election import Election
from aivailable.raft.figures import RaftTally
from aivailable.raft.guards import Guards
from aivailable.raft.journal import open_journal
from aivailable.raft.machine import Link, Machine
from aivailable.raft.membership import Verb, Voter, in_force, names
from aivailable.raft.proposals import BARRIER_TOKEN_BYTES, Authorize, Proposals
from aivailable.raft.settings import RaftSettings
from aivailable.raft.snapshot import Snapshots, unseal
from aivailable.raft.store import Durability, Store
from aivailable.raft.transport import RaftTransport
from aivailable.raft.writing import Writing
from aivailable.wire.limits import COMMAND_MAX_BYTES

log = logging.getLogger(__name__)

CHANGE_DEADLINE_S = 10.0
TIMER_SLACK_S = 0.001
"""A tick comes this much after an election timer, to find it expired."""


class RaftNode:
    """A member's copy of the replicated log, as voter or observer.

    Lives on one event loop. Before `start` its figures are those it was built with; after `stop`
    they stay readable.
    """

    def __init__(
        self,
        *,
        node_id: NodeId,
        voters: tuple[NodeId, ...],
        observers: tuple[NodeId, ...],
        role: Role,
        machine: Machine,
        link: Link,
        store: Store,
        clock: Callable[[], float],
        rng: random.Random,
        settings: RaftSettings | None = None,
        on_change: Callable[[], None] | None = None,
        authorize: Authorize | None = None,
        guards: Guards | None = None,
        founders: bool = False,
    ) -> None:
        """`voters` matters only for an empty store; an old log knows its own configuration.

        `clock` is monotonic seconds. `on_change` is called, on the loop, after leader, term, role
        or voters changed. `authorize(node, payload)` is asked on the leader for every command
        that a member forwards. `role` VOTER makes it willing to vote; it stands for election only
        while the log calls it a voter. `founders`: all of `voters` start on empty stores (tests).
        """
        self._node_id = node_id
        self._voters_at_start = voters
        self._observers = observers
        self._role_at_start = role
        self._machine = machine
        self._link = link
        self._store = store
        self._clock = clock
        self._rng = rng
        self._settings = settings or RaftSettings()
        self._on_change = on_change
        self._guards = guards or Guards()
        self.tally = RaftTally()
        self._founders = founders
        self._wanted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._running = False
        self._opened = False
        self._proposals = Proposals(
            node_id,
            clock=clock,
            retry_s=self._settings.retry_s,
            tally=self.tally,
            authorize=authorize or (lambda _node, _payload: True),
            wake=self._wanted.set,
        )
        self._seen_applied = 0
        self._seen_standing: tuple[object, ...] = ()
        self._replicated = (0, 0)
        self._writing: Writing | None = None
        self._expelling: asyncio.Task[None] | None = None

    # Life.

    async def start(self) -> None:
        """Open the store and take part. Raises StoreDamaged, StoreTooNew, StoreUnusable."""
        stored = await self._store.load()
        disk = Durability(self._store)
        founders = self._founders or self._voters_at_start == (self._node_id,)
        self._journal = journal = open_journal(
            stored,
            disk,
            voters=self._voters_at_start,
            founding=founders and self._role_at_start is Role.VOTER,
            rng=self._rng,
        )
        snapshots = Snapshots(self._machine, disk, lambda: self._consensus.applied_voters())
        snapshot = None
        if stored.snapshot is not None:
            snapshot = unseal(stored.snapshot)
            journal.rebase(snapshot.last, snapshot.prev, snapshot.voters)
            snapshots.adopt(stored.snapshot, durable=True)
        self._ambient = library.Ambient(self._clock, self._rng, journal, snapshots)
        self._transport = RaftTransport(
            self._link,
            disk=disk,
            journal=journal,
            snapshots=snapshots,
            guards=self._guards,
            tally=self.tally,
            clock=self._clock,
            on_submit=self._proposals.forwarded,
            wake=self._wanted.set,
        )
        configuration = in_force(journal.base_voters, journal.log)
        voters = names(configuration)
        own = (self._node_id, journal.incarnation)
        willing = self._role_at_start is Role.VOTER or own in configuration
        with library.acting(self._ambient):
            self._consensus = self._build(self._node_id if willing else None, voters)
            self._opened = True
            self._changes = VoterChanges(
                self._consensus, self._proposals, self._ambient, self._wanted.set
            )
            if snapshot is not None:
                self._consensus.restore(snapshot.voters)
            if configuration == (own,):
                self._consensus.set_election_deadline(AT_ONCE)
            self._transport.set_observers(self._observers)
        await journal.sync_at_start()
        self._writing = Writing(
            journal,
            disk,
            ambient=self._ambient,
            consensus=self._consensus,
            election=self._election,
            transport=self._transport,
            wake=self._wanted.set,
            changed=self._after,
        )
        self._running = True
        for node in (*voters, *self._observers):
            if self._link.connected(node):
                self.link_up(node)
        self._seen_standing = self._standing()
        self._tasks = [
            asyncio.create_task(self._tick_on(), name=f"raft-tick-{self._node_id}"),
            asyncio.create_task(self._writing.run(), name=f"raft-sync-{self._node_id}"),
        ]

    def _build(self, voter: NodeId | None, voters: tuple[NodeId, ...]) -> Consensus:
        consensus = Consensus(
            voter,
            voters,
            journal=self._journal,
            machine=self._machine,
            transport=self._transport,
            settings=self._settings,
            guards=self._guards,
            on_applied=self._proposals.applied,
        )
        self._election = Election(
            self._node_id,
            consensus,
            clock=self._clock,
            rng=self._rng,
            settings=self._settings,
            guards=self._guards,
            send=self._transport.post,
        )
        self._transport.attach(consensus, self._election)
        self._proposals.attach(consensus, self._transport)
        return consensus

    async def stop(self) -> None:
        """Leave in order: nothing is sent any more, everything is on disk, the store is closed."""
        tasks = self._tasks
        self.kill()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.failure is None and tasks:
            await self._journal.sync()
        await self._store.close()

    def kill(self) -> None:
        """Stop at once, as kill -9 does: what is not on disk yet is lost. For tests and `stop`."""
        if not self._running:
            return
        self._running = False
        for task in self._tasks:
            task.cancel()
        if self._expelling is not None:
            self._expelling.cancel()
        self._tasks = []
        self._proposals.close()
        with library.acting(self._ambient):
            self._consensus.destroy()

    # What the links tell.

    def link_up(self, node: NodeId) -> None:
        """A link to this member is up; both sides see it before either's messages."""
        if self._running:
            with library.acting(self._ambient):
                self._transport.link_up(node)

    def link_down(self, node: NodeId) -> None:
        """The link is gone, with whatever it still carried."""
        if self._running:
            with library.acting(self._ambient):
                self._transport.link_down(node)

    def receive(self, node: NodeId, data: bytes) -> None:
        """One message of a linked member, in order. Never raises."""
        if not self._running or self.failure is not None:
            return  # Without a disk nothing can be promised, and the log must not grow.
        try:
            with library.acting(self._ambient):
                self._transport.receive(node, data)
        except Exception:
            self.tally.faults += 1
            log.exception("a raft message of %s could not be handled", node)
        self._after()

    def set_observers(self, observers: tuple[NodeId, ...]) -> None:
        """Which linked members that do not vote receive the log from us when we lead."""
        self._observers = observers
        if self._running:
            with library.acting(self._ambient):
                self._transport.set_observers(observers)

    # What can be asked.

    @property
    def node_id(self) -> NodeId:
        return self._node_id

    @property
    def is_leader(self) -> bool:
        """Whether this node believes that it leads; another may believe so, too, for a second."""
        return self._running and self._consensus.is_leading()

    @property
    def leader(self) -> NodeId | None:
        """Who leads as far as this node knows; None when it hears nothing from the leader."""
        leader = self._consensus.leader_id() if self._running else None
        if leader is None or leader == self._node_id:
            return leader if self.is_leader else None
        lost = self._election.leader_is_silent() or not self._link.connected(leader)
        return None if lost else leader

    @property
    def failure(self) -> OSError | None:
        """While the disk takes nothing: the node only serves what it knows, and tries again."""
        return self._writing.failure if self._writing is not None else None

    @property
    def term(self) -> int:
        return self._consensus.current_term() if self._opened else 0

    @property
    def applied_index(self) -> int:
        return int(self._consensus.raftLastApplied) if self._opened else 0

    @property
    def commit_index(self) -> int:
        return int(self._consensus.raftCommitIndex) if self._opened else 0

    @property
    def last_index(self) -> int:
        """Where this node's log ends, committed or not."""
        return self._consensus.last_entry()[1] if self._opened else 0

    @property
    def log_length(self) -> int:
        """Entries kept since the last compaction."""
        return len(self._journal) if self._opened else 0

    @property
    def voters(self) -> tuple[NodeId, ...]:
        """The configuration in force: the last one in the log, committed or not."""
        return self._consensus.voters() if self._opened else self._voters_at_start

    @property
    def role(self) -> Role:
        if not self._opened:
            return self._role_at_start
        return Role.OBSERVER if self._consensus.voter_id() is None else Role.VOTER

    def caught_up(self, node: NodeId) -> bool:
        """Leader only: whether this linked member has (nearly) all of the log on its disk."""
        if not self.is_leader or not self._link.connected(node):
            return False
        behind = self._consensus.last_entry()[1] - self._consensus.match_index(node)
        return self._consensus.tracks(node) and behind <= self._settings.caught_up_entries

    # What can be done.

    async def propose(
        self, payload: bytes, *, deadline_s: float, applied: Callable[[], bool] | None = None
    ) -> None:
        """Return once `payload` is committed and applied on this node, wherever the leader is.

        It may be committed more than once: it must carry an identity that makes that harmless.
        `applied`, asked after every apply here, can tell that it happened (also by a snapshot).
        Raises ProposalUnknown after `deadline_s` seconds: it may still happen; ProposalRejected
        when it is over COMMAND_MAX_BYTES or too many proposals wait.
        """
        if len(payload) > COMMAND_MAX_BYTES:
            raise ProposalRejected("too_large", f"a command is at most {COMMAND_MAX_BYTES} bytes")
        await self._commit(library.REGULAR + payload, deadline_s, applied)

    async def barrier(self, deadline_s: float) -> None:
        """Return once everything committed before this call is applied here (linearizable read).

        Raises ProposalUnknown: no majority answered within `deadline_s` seconds.
        """
        token = self._rng.randbytes(BARRIER_TOKEN_BYTES)
        await self._commit(library.NO_OP + token, deadline_s, None)

    async def add_voter(self, node: NodeId, *, deadline_s: float = CHANGE_DEADLINE_S) -> None:
        """Leader only: let `node`, which has become willing to vote, vote.

        Raises ProposalRejected (not_leader, busy, unheard) and ProposalUnknown.
        """
        self._must_lead()
        heard = self._transport.incarnation
        await self._changes.learn(lambda: heard(node) is not None, "unheard", "it is not linked")
        await self._change("add", (node, heard(node) or 0), deadline_s)

    async def remove_voter(self, node: NodeId, *, deadline_s: float = CHANGE_DEADLINE_S) -> None:
        """Leader only: `node` votes no longer; it stays an observer while it is linked.

        Raises ProposalRejected (not_leader, busy, leader: hand over first) and ProposalUnknown.
        """
        if node == self._node_id:
            raise ProposalRejected("leader", "the leader cannot remove itself: hand over first")
        self._must_lead()
        await self._change("rem", (node, 0), deadline_s)

    async def transfer_leadership(self, *, deadline_s: float = 3.0) -> None:
        """Leader only: return once another voter leads, or at once if we do not.

        Raises ProposalRejected when there is no other voter, ProposalUnknown at the deadline.
        """
        await self._changes.hand_over(self._settings.election_min_s, deadline_s)

    async def become_voter(self, voters: Sequence[NodeId] = ()) -> None:
        """Be willing to vote, on the same log; `add_voter` on the leader then makes it count.

        `voters` is what the caller believes to be the configuration. Raises ProposalRejected
        (behind) when our log does not show all of them within a second.
        """
        named = [voter for voter in voters if voter != self._node_id]
        await self._changes.learn(
            lambda: all(voter in self.voters for voter in named),
            "behind",
            "the log here does not know all voters yet",
        )
        self._play(self._node_id)

    async def become_observer(self, voters: Sequence[NodeId] = ()) -> None:
        """Stop voting, on the same log.

        Raises ProposalRejected (still_voter) when `voters`, what the caller believes to be the
        configuration, names us, or our log still does after a second.
        """
        await self._changes.learn(
            lambda: self._node_id not in (*self.voters, *voters),
            "still_voter",
            "remove this voter through the leader first",
        )
        self._play(None)

    def compact(self) -> None:
        """Take a snapshot and cut the log soon, whatever its size."""
        self._consensus.compact()
        self._wanted.set()

    # Inside.

    async def _commit(
        self, command: bytes, deadline_s: float, applied: Callable[[], bool] | None
    ) -> None:
        if not self._running:
            raise ProposalUnknown("this node's raft is not running")
        if self.failure is not None:
            raise ProposalRejected("disk", f"this node's disk takes nothing: {self.failure}")
        self._wanted.set()
        await self._proposals.commit(command, deadline_s, applied)

    def _must_lead(self) -> None:
        if not self.is_leader:
            raise ProposalRejected("not_leader", "only the leader changes who votes")

    async def _change(self, verb: Verb, voter: Voter, deadline_s: float) -> None:
        # Only after an entry of this leader's term is committed is the configuration its own.
        await self.barrier(deadline_s)
        await self._changes.change(verb, voter, deadline_s)

    def _play(self, voter: NodeId | None) -> None:
        if self._consensus.voter_id() == voter:
            return
        with library.acting(self._ambient):
            self._consensus.set_voter(voter)
            self._consensus.set_election_deadline(self._clock() + self._settings.election_max_s)
            self._transport.classify_all()
        self._wanted.set()
        self._after()

    async def _tick_on(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wanted.clear()
            try:
                self._tick()
            except Exception:
                self.tally.faults += 1
                log.exception("a raft tick failed; the next one goes on")
            self._after()
            timer = loop.call_later(self._pause_s(), self._wanted.set)
            try:
                await self._wanted.wait()
            finally:
                timer.cancel()

    def _pause_s(self) -> float:
        """Until the next tick: exact for election timers, so that jitter is not rounded away."""
        left_s = self._consensus.election_deadline_s() - self._clock()
        if self._consensus.is_leading() or not 0 <= left_s < self._settings.tick_s:
            return self._settings.tick_s
        return left_s + TIMER_SLACK_S

    def _tick(self) -> None:
        consensus = self._consensus
        with library.acting(self._ambient):
            self._transport.release_held()
            self._election.before_tick()
            consensus.doTick(0)
            self._election.after_tick()
            if consensus.members_changed():
                consensus.follow_members()
                self._transport.classify_all()
            reached = (consensus.last_entry()[1], self.commit_index)
            if consensus.is_leading() and reached != self._replicated:
                self._replicated = reached
                consensus.replicate()

    def _after(self) -> None:
        """Tell whoever waits for what has just changed."""
        if not self._running or self._writing is None:
            return
        self._writing.nudge()
        if self.applied_index != self._seen_applied:
            self._seen_applied = self.applied_index
            self._proposals.poke()
        standing = self._standing()
        if standing != self._seen_standing:
            self._seen_standing = standing
            self._proposals.leader_changed()
            if self._on_change is not None:
                self._on_change()
        forgetful, self._transport.forgetful = self._transport.forgetful, None
        if forgetful and self.is_leader and self._expelling is None:
            self._expelling = asyncio.create_task(self._expel(forgetful))

    def _standing(self) -> tuple[object, ...]:
        healthy = self.failure is None
        return (self.leader, self.is_leader, self.term, self.role, self.voters, healthy)

    async def _expel(self, node: NodeId) -> None:
        """Take the vote of a member that forgot what it promised; it may get it again."""
        log.warning("%s lost its log: its vote is taken away until it is added again", node)
        try:
            await self.remove_voter(node)
        except ProposalError as error:
            log.info("%s still counts as a voter: %s", node, error)
        finally:
            self._expelling = None
