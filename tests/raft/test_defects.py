"""Each measured defect of pysyncobj 0.3.17: shown with its guard off, gone with it on.

The numbers are those of raft/DESIGN.md, "The defects of PySyncObj 0.3.17".
"""

from __future__ import annotations

import asyncio
import pickle
import random
from typing import Any

import msgpack
import pysyncobj.pickle
import pytest
from fixtures.raft_cluster import Cluster, Recorder
from fixtures.virtual_time import elapse, run

from aivailable.core.state.records import Role
from aivailable.errors import ProposalRejected, ProposalUnknown, SchemaError
from aivailable.raft import codec, library
from aivailable.raft.guards import Guards, keep_matching
from aivailable.raft.library import NO_OP, REGULAR
from aivailable.raft.node import RaftNode
from aivailable.raft.settings import RaftSettings
from aivailable.raft.store import MemoryStore


class Mail:
    """A link to nobody: keeps what is sent, for tests that play the other nodes by hand."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def connected(self, node: str) -> bool:
        return True

    def send(self, node: str, data: bytes) -> bool:
        self.sent.append((node, codec.decode(data)[1]))
        return True

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [message for _, message in self.sent if message["type"] == kind]


class Alone:
    """Node A of voters A, B and C, where the test is B and C."""

    def __init__(self, guards: Guards, store: MemoryStore | None = None) -> None:
        self.mail, self.machine = Mail(), Recorder()
        self.store = store or MemoryStore()
        self.node = RaftNode(
            node_id="A",
            voters=("A", "B", "C"),
            observers=(),
            role=Role.VOTER,
            machine=self.machine,
            link=self.mail,
            store=self.store,
            clock=asyncio.get_running_loop().time,
            rng=random.Random(1),
            guards=guards,
            founders=True,
        )

    async def __aenter__(self) -> Alone:
        await self.node.start()
        self.node.link_up("B")
        self.node.link_up("C")
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self.node.tally.faults == 0
        await self.node.stop()

    def say(self, node: str, message: dict[str, Any], *, term: int | None = None) -> None:
        self.node.receive(node, codec.encode(term or message.get("term", 0), message))

    async def elect(self) -> int:
        """Give A every vote it asks for, until it leads."""
        for _ in range(400):
            for node, message in self.mail.sent:
                if message["type"] == "pre_vote":
                    self.say(node, {"type": "pre_vote_granted", "round": message["round"]})
                if message["type"] == "request_vote":
                    self.say(node, {"type": "response_vote", "term": message["term"]})
            self.mail.sent.clear()
            if self.node.is_leader:
                return self.node.term
            await elapse(0.02)
        raise AssertionError("A was not elected")

    def append(self, node: str, term: int, prev: tuple[int, int], *terms: int, commit: int = 1):  # type: ignore[no-untyped-def]
        entries = tuple((NO_OP, prev[0] + 1 + n, t) for n, t in enumerate(terms))
        fields = {"prevLogIdx": prev[0], "prevLogTerm": prev[1], "entries": entries}
        self.say(node, {"type": "append_entries", "term": term, "commit_index": commit, **fields})


@pytest.mark.parametrize("closed", [True, False])
def test_d1_a_snapshot_message_commits_nothing(closed: bool) -> None:
    async def scenario() -> None:
        async with Alone(Guards(snapshot_commit=closed)) as alone:
            term = await alone.elect()
            with pytest.raises(ProposalUnknown):
                await alone.node.propose(b"never replicated", deadline_s=0.05)
            empty = {"type": "append_entries", "term": term + 1, "commit_index": 500}
            alone.say("B", {**empty, "serialized": None})
            await elapse(0.1)
            assert alone.machine.payloads == ([] if closed else [b"never replicated"])

    run(scenario(), limit_s=30)


@pytest.mark.parametrize("closed", [True, False])
def test_d2_an_acknowledgement_of_another_term_counts_nothing(closed: bool) -> None:
    async def scenario() -> None:
        async with Alone(Guards(ack_term=closed)) as alone:
            old = await alone.elect()
            for number in range(5):
                with pytest.raises(ProposalUnknown):
                    await alone.node.propose(b"t%d" % number, deadline_s=0.01)
            # C led in between and wrote over all of it; then A leads again.
            alone.append("C", old + 1, (1, 0), old + 1)
            await elapse(1.5)
            await alone.elect()
            with pytest.raises(ProposalUnknown):
                await alone.node.propose(b"held by A alone", deadline_s=0.1)
            late = {"type": "next_node_idx", "next_node_idx": 5, "reset": False, "success": True}
            alone.say("B", late, term=old)
            await elapse(0.05)
            assert (b"held by A alone" in alone.machine.payloads) == (not closed)

    run(scenario(), limit_s=60)


@pytest.mark.parametrize("closed", [True, False])
def test_d3_a_late_duplicate_truncates_nothing(closed: bool) -> None:
    async def scenario() -> None:
        async with Alone(Guards(keep_matching=closed)) as alone:
            alone.append("B", 1, (1, 0), 1, 1, 1, commit=4)
            await elapse(0.1)
            assert (alone.node.applied_index, alone.node.last_index) == (4, 4)
            alone.append("B", 1, (1, 0), 1, commit=4)
            assert alone.node.last_index == (4 if closed else 2)

    run(scenario(), limit_s=30)


@pytest.mark.parametrize("closed", [True, False])
def test_d4_one_change_of_voters_at_a_time(closed: bool) -> None:
    async def scenario() -> None:
        async with Cluster("ABC", "DE", guards=Guards(one_change=closed)) as cluster:
            leader = await cluster.leader()
            await leader.barrier(1.0)
            for name in "DE":
                await cluster.nodes[name].become_voter()
            both = await asyncio.gather(
                leader.add_voter("D"), leader.add_voter("E"), return_exceptions=True
            )
            refused = [answer for answer in both if isinstance(answer, ProposalRejected)]
            assert [error.code for error in refused] == (["busy"] if closed else [])

    run(scenario(), limit_s=30)


@pytest.mark.parametrize("closed", [True, False])
def test_promises_wait_for_the_disk(closed: bool) -> None:
    async def scenario() -> None:
        store = MemoryStore(latency_s=0.0)
        guards = Guards(synced_promises=closed)
        async with Alone(guards, store) as alone:
            store.latency_s = 1.0
            alone.append("B", 1, (1, 0), 1)
            await elapse(0.9)
            assert len(alone.mail.of_kind("next_node_idx")) == (0 if closed else 1)
            await elapse(0.2)
            assert len(alone.mail.of_kind("next_node_idx")) == 1

    run(scenario(), limit_s=30)


@pytest.mark.parametrize("closed", [True, False])
def test_a_leader_counts_its_own_copy_when_it_is_on_disk(closed: bool) -> None:
    async def scenario() -> None:
        store = MemoryStore()
        async with Cluster("A", guards=Guards(synced_commit=closed)) as cluster:
            store = cluster.stores["A"]
            node = await cluster.leader()
            store.latency_s = 1.0
            if closed:
                with pytest.raises(ProposalUnknown):
                    await node.propose(b"x", deadline_s=0.9)
            await node.propose(b"x", deadline_s=0.2)

    run(scenario(), limit_s=30)


@pytest.mark.parametrize("closed", [True, False])
def test_a_cut_off_node_does_not_drive_the_term_up(closed: bool) -> None:
    async def scenario() -> int:
        async with Cluster("ABC", guards=Guards(pre_vote=closed)) as cluster:
            leader = await cluster.leader()
            lonely = next(name for name in "ABC" if name != leader.node_id)
            other = next(name for name in "ABC" if name not in (lonely, leader.node_id))
            before = leader.term
            cluster.silence(lonely, leader.node_id)
            cluster.silence(lonely, other)
            await elapse(30.0)
            cluster.heal()
            await elapse(3.0)
            await (await cluster.leader()).barrier(2.0)
            return cluster.nodes[lonely].term - before

    risen = run(scenario(), limit_s=60)
    assert risen == 0 if closed else risen > 10


def test_a_node_in_a_later_term_is_not_shut_out_for_ever() -> None:
    """With pre-vote, a live leader and a node in a later term would ignore each other."""

    async def scenario() -> None:
        async with Cluster("ABC") as cluster:
            leader = await cluster.leader()
            late = next(name for name in "ABC" if name != leader.node_id)
            ambient = cluster.nodes[late]._ambient
            with library.acting(ambient):
                cluster.nodes[late]._consensus.step_down(leader.term + 3)
            await elapse(3.0)
            new = await cluster.leader()
            await new.propose(b"x", deadline_s=2.0)
            await cluster.converge()

    run(scenario(), limit_s=30)


def test_d19_many_divergent_entries_are_replaced_fast() -> None:
    async def scenario() -> None:
        async with Cluster("ABC") as cluster:
            old = await cluster.leader()
            for other in "ABC":
                if other != old.node_id:
                    cluster.silence(old.node_id, other)
            lost = [old.propose(b"old%d" % n, deadline_s=0.5) for n in range(500)]
            await asyncio.gather(*lost, return_exceptions=True)
            new = await cluster.leader(among="ABC".replace(old.node_id, ""))
            await asyncio.gather(*(new.propose(b"%d" % n, deadline_s=2.0) for n in range(500)))
            cluster.heal()
            assert await cluster.converge(limit_s=2.0) == [b"%d" % n for n in range(500)]

    run(scenario(), limit_s=60)


def test_divergence_ends_also_when_more_than_one_batch_waits() -> None:
    """Each further batch stands behind a gap; its answer must not undo the first one's."""

    async def scenario() -> None:
        async with Cluster("ABC") as cluster:
            old = await cluster.leader()
            others = "ABC".replace(old.node_id, "")
            await cluster.converge()
            for other in others:
                cluster.silence(old.node_id, other)
            lost = [old.propose(b"old%d" % n, deadline_s=0.5) for n in range(8)]
            await asyncio.gather(*lost, return_exceptions=True)
            new = await cluster.leader(among=others)
            small = [b"%d" % n for n in range(8)]
            await asyncio.gather(*(new.propose(payload, deadline_s=2.0) for payload in small))
            await new.transfer_leadership()
            newest = await cluster.leader(among=others.replace(new.node_id, ""))
            big = [
                (b"big%d" % n).ljust(6_000, b".")
                for n in range(3 * RaftSettings().batch_bytes // 6_000)
            ]
            await asyncio.gather(*(newest.propose(payload, deadline_s=2.0) for payload in big))
            cluster.heal()
            assert await cluster.converge(limit_s=2.0) == small + big

    run(scenario(), limit_s=60)


def test_a_raising_machine_does_not_wedge_the_log() -> None:
    class Broken(Recorder):
        def apply(self, payload: bytes) -> None:
            if payload == b"bad":
                raise ValueError(payload)
            super().apply(payload)

    async def scenario() -> None:
        async with Cluster("A") as cluster:
            node = await cluster.leader()
            node._consensus._machine = broken = Broken()
            await node.propose(b"bad", deadline_s=1.0)
            await node.propose(b"good", deadline_s=1.0)
            assert broken.payloads == [b"good"]

    run(scenario(), limit_s=30)


def test_d17_pickle_is_poisoned_and_gets_in_nowhere() -> None:
    for name in ("loads", "dumps", "load", "dump"):
        with pytest.raises(RuntimeError, match="pickle is disabled"):
            getattr(pysyncobj.pickle, name)(b"x")
    with pytest.raises(RuntimeError, match="pickle is disabled"):
        _ = pysyncobj.pickle.pickle.loads

    async def scenario() -> None:
        async with Alone(Guards()) as alone:
            alone.node.receive("B", pickle.dumps({"type": "append_entries"}))
            assert alone.node.tally.malformed == 1

    run(scenario(), limit_s=5)


def test_another_version_of_the_library_is_refused() -> None:
    with pytest.raises(ImportError, match=r"pip install pysyncobj==0\.3\.17"):
        library.check_library("0.3.18")
    with pytest.raises(ImportError, match="lacks"):
        library.check_library(library.VERSION, type("Module", (), {"SyncObj": object}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xc1",
        msgpack.packb([1, 0, "append_entries", [1, 1, 1, 1, [[REGULAR, 5, 1], [REGULAR, 7, 1]]]]),
        msgpack.packb([1, 0, "next_node_idx", [1, True]]),
        msgpack.packb([1, 0, "next_node_idx", [-1, True, True]]),
        msgpack.packb([1, 0, "apply_command", [b"x"]]),
        msgpack.packb([1, 0, "submit", [REGULAR + b"x" * 40_000]]),
        msgpack.packb([True, 0, "receiving", []]),
    ],
)
def test_malformed_messages_are_refused(value: bytes) -> None:
    with pytest.raises(SchemaError):
        codec.decode(value)


def test_keep_matching_leaves_only_what_is_new() -> None:
    log = [(NO_OP, index, 1) for index in range(1, 6)]
    message = {"prevLogIdx": 2, "prevLogTerm": 1, "commit_index": 9}
    message |= {"entries": ((NO_OP, 3, 1), (NO_OP, 4, 2))}
    rest, ack = keep_matching(message, log, 3, fast_backtrack=True)
    assert ack is None
    assert (rest["prevLogIdx"], rest["entries"]) == (3, ((NO_OP, 4, 2),))
