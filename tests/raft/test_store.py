"""What a disk may do to a log: tear its end, flip its bits, fail."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from fixtures.raft_cluster import Cluster, MemoryLink, Recorder
from fixtures.virtual_time import elapse, run

from aivailable.core.state.records import Role
from aivailable.errors import ProposalUnknown
from aivailable.raft.journal import Journal
from aivailable.raft.library import NO_OP
from aivailable.raft.node import RaftNode
from aivailable.raft.snapshot import Snapshot, seal, unseal
from aivailable.raft.store import (
    DiskThread,
    Durability,
    FileStore,
    MemoryStore,
    Operation,
    StoreDamaged,
)


async def filled() -> MemoryStore:
    store = MemoryStore()
    disk = Durability(store)
    journal = Journal(b"", disk, voters=("A",))
    for index in range(1, 40):
        journal.add(NO_OP + b"%d" % index, index, 1)
    journal.setCurrentTerm(3, "B")
    journal.deleteEntriesFrom(30)
    journal.setRaftCommitIndex(20)
    journal.onOneSecondTimer()
    await journal.sync()
    return store


def reopened(data: bytes) -> Journal:
    return Journal(data, Durability(MemoryStore()), voters=("Z",))


def test_a_journal_comes_back_as_it_was() -> None:
    async def scenario() -> None:
        journal = reopened(bytes((await filled()).journal))
        assert [entry[1] for entry in journal.log] == list(range(1, 31))
        assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (3, "B")
        assert (journal.getRaftCommitIndex(), journal.base_voters) == (20, (("A", 0),))

    run(scenario())


def test_any_torn_tail_is_cut() -> None:
    async def scenario() -> None:
        data = bytes((await filled()).journal)
        for size in range(len(data) - 200, len(data)):
            journal = reopened(data[:size])
            indices = [entry[1] for entry in journal.log]
            assert indices == list(range(1, len(indices) + 1))
            assert journal.getRaftCommitIndex() <= len(indices)

    run(scenario())


def test_a_zeroed_tail_is_cut() -> None:
    async def scenario() -> None:
        data = bytes((await filled()).journal)
        assert len(reopened(data[:-150] + bytes(150)).log) > 20

    run(scenario())


def test_a_flipped_byte_inside_is_damage() -> None:
    async def scenario() -> None:
        data = (await filled()).journal
        rng = random.Random(5)
        for _ in range(50):
            place = rng.randrange(len(data) - 100)
            flipped = bytearray(data)
            flipped[place] ^= 1 << rng.randrange(8)
            with pytest.raises(StoreDamaged):
                reopened(bytes(flipped))

    run(scenario())


def test_a_flipped_byte_in_a_snapshot_is_damage() -> None:
    sealed = seal(Snapshot(b"state", (NO_OP, 9, 2), (NO_OP, 8, 2), (("A", 7),)))
    assert unseal(sealed).last == (NO_OP, 9, 2)
    for place in range(len(sealed)):
        flipped = bytearray(sealed)
        flipped[place] ^= 4
        with pytest.raises(StoreDamaged):
            unseal(bytes(flipped))


def test_a_damaged_node_sets_aside_and_comes_back() -> None:
    async def scenario() -> None:
        async with Cluster("ABC", "O") as cluster:
            leader = await cluster.leader()
            for number in range(20):
                await leader.propose(b"%d" % number, deadline_s=1.0)
            await cluster.converge()
            cluster.crash("O")
            cluster.stores["O"].journal[200] ^= 1
            with pytest.raises(StoreDamaged, match="set it aside"):
                await cluster.start("O")
            await cluster.stores["O"].set_aside()
            await cluster.start("O")
            assert len(await cluster.converge()) == 20

    run(scenario(), limit_s=30)


def test_unsynced_entries_are_forgotten_and_nothing_acknowledged_is() -> None:
    async def scenario() -> None:
        async with Cluster("A", sync_latency_s=0.01) as cluster:
            node = await cluster.leader()
            await node.propose(b"kept", deadline_s=1.0)
            with pytest.raises(ProposalUnknown):
                await node.propose(b"not yet", deadline_s=0.005)
            cluster.crash("A", torn_bytes=7)
            await cluster.start("A")
            assert await cluster.converge() == [b"kept"]

    run(scenario(), limit_s=30)


def test_a_failing_disk_silences_the_node() -> None:
    async def scenario() -> None:
        async with Cluster("ABC") as cluster:
            old = await cluster.leader()
            cluster.stores[old.node_id].fail_with = OSError("no space left")
            with pytest.raises(ProposalUnknown):
                await old.propose(b"x", deadline_s=5.0)
            assert old.failure is not None
            assert not old.is_leader
            cluster.isolate(old.node_id)
            await (await cluster.leader()).propose(b"y", deadline_s=2.0)
            cluster.nodes.pop(old.node_id)

    run(scenario(), limit_s=30)


def test_a_large_state_reaches_a_lagging_node_without_deposing_the_leader() -> None:
    async def scenario() -> None:
        async with Cluster("ABC") as cluster:
            leader = await cluster.leader()
            lagging = next(name for name in "ABC" if name != leader.node_id)
            cluster.isolate(lagging)
            for number in range(64):
                await leader.propose(b"%d" % number + b"x" * 30_000, deadline_s=1.0)
            leader.compact()
            await cluster.until(lambda: leader.log_length < 5)
            term = leader.term
            cluster.heal()
            assert len(await cluster.converge()) == 64
            assert leader.term == term

    run(scenario(), limit_s=60)


async def test_files_keep_a_log_through_restarts_and_compaction(tmp_path: Path) -> None:
    """The real thread and the real disk; waits for events only."""
    for round_number in range(3):
        machine = Recorder()
        node = RaftNode(
            node_id="A",
            voters=("A",),
            observers=(),
            role=Role.VOTER,
            machine=machine,
            link=MemoryLink(Cluster("A"), "A"),
            store=FileStore(tmp_path / "raft", DiskThread()),
            clock=asyncio.get_running_loop().time,
            rng=random.Random(1),
        )
        assert (node.voters, node.role, node.applied_index) == (("A",), Role.VOTER, 0)
        await node.start()
        for number in range(10):
            await node.propose(b"%d.%d" % (round_number, number), deadline_s=5.0)
        node.compact()
        await node.barrier(5.0)
        await node.barrier(5.0)
        assert len(machine.payloads) == 10 * (round_number + 1)
        await node.stop()
    assert sorted(path.name for path in (tmp_path / "raft").iterdir()) == ["journal", "snapshot"]


async def test_a_file_store_performs_in_order_and_sets_aside(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "raft", DiskThread())
    assert (await store.load()).journal == b""
    for kind, data in (("append", b"a"), ("journal", b"b"), ("append", b"c"), ("snapshot", b"s")):
        store.put(Operation(kind, data))  # type: ignore[arg-type]
    await store.sync()
    stored = await store.load()
    assert (stored.journal, stored.snapshot) == (b"bc", b"s")
    await store.set_aside()
    stored = await store.load()
    assert (stored.journal, stored.snapshot) == (b"", None)
    await store.close()
    assert (tmp_path / "raft" / "journal.damaged-0").read_bytes() == b"bc"


def test_elapsed_time_without_traffic_keeps_one_leader() -> None:
    async def scenario() -> None:
        async with Cluster("ABC", "O") as cluster:
            leader = await cluster.leader()
            term = leader.term
            await elapse(40.0)
            assert leader.is_leader
            assert leader.term == term

    run(scenario(), limit_s=200)
