"""Damage against torn tails, formats of other versions, and voters that lost their log."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from fixtures.raft_cluster import Cluster, MemoryLink, Recorder
from fixtures.virtual_time import elapse, run

from aivailable.core.state.records import Role
from aivailable.errors import ProposalUnknown
from aivailable.raft import journal as journal_module
from aivailable.raft import snapshot as snapshot_module
from aivailable.raft.guards import Guards
from aivailable.raft.journal import Journal
from aivailable.raft.library import NO_OP, REGULAR
from aivailable.raft.node import RaftNode
from aivailable.raft.snapshot import Snapshot, seal, unseal
from aivailable.raft.store import Durability, MemoryStore, StoreDamaged, StoreTooNew

FIXTURES = Path(__file__).parent / "fixtures_v1"
VOTERS = (("A", 0), ("B", 77))


async def written() -> tuple[bytes, int]:
    """A journal of two synced batches, and where the second began."""
    store = MemoryStore()
    journal = Journal(b"", Durability(store), voters=("A", "B"), incarnation=77)
    journal.setCurrentTerm(3, "B")
    for index in range(1, 6):
        journal.add(NO_OP, index, 1)
    await journal.sync()
    began = len(store.journal)
    journal.add(REGULAR + b"promised", 6, 3)
    await journal.sync()
    return bytes(store.journal), began


def reopened(data: bytes) -> Journal:
    return Journal(data, Durability(MemoryStore()), voters=("Z",), incarnation=1)


def seal_bytes() -> int:
    return len(journal_module._pack([journal_module._SEAL]))


def test_every_flipped_bit_of_the_last_promise_is_damage() -> None:
    async def scenario() -> None:
        data, began = await written()
        for place in range(began, len(data) - seal_bytes()):
            for bit in range(8):
                flipped = bytearray(data)
                flipped[place] ^= 1 << bit
                with pytest.raises(StoreDamaged):
                    reopened(bytes(flipped))

    run(scenario())


def test_a_flipped_bit_in_the_seal_costs_nothing() -> None:
    async def scenario() -> None:
        data, _ = await written()
        for place in range(len(data) - seal_bytes(), len(data)):
            flipped = bytearray(data)
            flipped[place] ^= 1
            assert reopened(bytes(flipped)).log[-1] == (REGULAR + b"promised", 6, 3)

    run(scenario())


def test_a_tail_torn_at_any_byte_behind_the_seal_is_cut() -> None:
    async def scenario() -> None:
        data, _ = await written()
        torn = journal_module._pack([journal_module._ENTRY, 7, 3, REGULAR + b"unpromised"])
        for size in range(len(torn)):
            assert reopened(data + torn[:size]).log[-1][1] == 6
            zeroed = torn[:size] + bytes(len(torn) - size)
            assert reopened(data + zeroed).log[-1][1] == 6
        assert reopened(data + torn).log[-1][1] == 7

    run(scenario())


def test_a_gap_in_the_log_is_damage() -> None:
    async def scenario() -> None:
        data, _ = await written()
        with pytest.raises(StoreDamaged, match="entry 9 follows 6"):
            reopened(data + journal_module._pack([journal_module._ENTRY, 9, 3, NO_OP]))
        with pytest.raises(StoreDamaged, match="unknown record"):
            reopened(data + journal_module._pack([99]))

    run(scenario())


def test_what_a_newer_version_wrote_is_refused_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        data, _ = await written()
        monkeypatch.setattr(journal_module, "_FORMAT", 0)
        with pytest.raises(StoreTooNew, match="format 1"):
            reopened(data)
        sealed = seal(Snapshot(b"state", (NO_OP, 9, 2), (NO_OP, 8, 2), VOTERS))
        monkeypatch.setattr(snapshot_module, "_FORMAT", 0)
        with pytest.raises(StoreTooNew, match="format 1"):
            unseal(sealed)

    run(scenario())


def test_files_of_format_1_are_read() -> None:
    """These bytes were written by version 0.1.0; every later version must read them."""
    journal = reopened((FIXTURES / "journal").read_bytes())
    assert journal.log == [(NO_OP, n, 1) for n in range(1, 6)] + [(REGULAR + b"promised", 6, 3)]
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (3, "B")
    assert (journal.base_voters, journal.incarnation) == ((("A", 0), ("B", 0)), 77)
    snapshot = unseal((FIXTURES / "snapshot").read_bytes())
    assert snapshot == Snapshot(b"state", (NO_OP, 9, 2), (NO_OP, 8, 2), VOTERS)


def test_todays_files_are_the_fixture() -> None:
    """Fails when the format changes: then give it a new number and keep both fixtures."""

    async def scenario() -> None:
        data, _ = await written()
        assert data == (FIXTURES / "journal").read_bytes()
        sealed = seal(Snapshot(b"state", (NO_OP, 9, 2), (NO_OP, 8, 2), VOTERS))
        assert sealed == (FIXTURES / "snapshot").read_bytes()

    run(scenario())


async def loses_its_log(cluster: Cluster, name: str) -> None:
    cluster.crash(name)
    cluster.stores[name].journal[40] ^= 1
    with pytest.raises(StoreDamaged, match="set it aside"):
        await cluster.start(name)
    await cluster.stores[name].set_aside()
    await cluster.start(name)


@pytest.mark.parametrize("closed", [True, False])
def test_a_voter_that_forgot_does_not_elect_one_that_never_knew(closed: bool) -> None:
    """Acknowledged by A and X; X forgets; A is off. B with X must not lead: it would lose it."""

    async def scenario() -> None:
        async with Cluster("ABC", guards=Guards(incarnations=closed)) as cluster:
            leader = await cluster.leader()
            forgets, behind = (name for name in "ABC" if name != leader.node_id)
            await leader.propose(b"before", deadline_s=1.0)
            cluster.isolate(behind)
            await leader.propose(b"promised", deadline_s=1.0)
            cluster.crash(leader.node_id)
            await loses_its_log(cluster, forgets)
            cluster.heal()
            await elapse(5.0)
            if not closed:
                assert cluster.leading() == behind
                assert b"promised" not in cluster.machines[behind].payloads
                return
            assert cluster.leading() is None
            with pytest.raises(ProposalUnknown):
                await cluster.nodes[behind].propose(b"too early", deadline_s=1.0)
            for _ in range(2):  # Nor after another restart, when its log names it again.
                cluster.crash(forgets)
                await cluster.start(forgets)
                await elapse(2.0)
                assert cluster.leading() is None
            await cluster.start(leader.node_id)
            assert (await cluster.converge())[:2] == [b"before", b"promised"]

    run(scenario(), limit_s=60)


def test_a_voter_that_forgot_loses_its_vote_and_gets_it_back() -> None:
    async def scenario() -> None:
        async with Cluster("ABC") as cluster:
            leader = await cluster.leader()
            forgets = next(name for name in "ABC" if name != leader.node_id)
            await leader.propose(b"one", deadline_s=1.0)
            await loses_its_log(cluster, forgets)
            await cluster.until(lambda: forgets not in leader.voters)
            await cluster.until(lambda: leader.caught_up(forgets))
            await cluster.nodes[forgets].become_voter(leader.voters)
            await leader.add_voter(forgets)
            assert await cluster.converge() == [b"one"]
            assert leader.voters == ("A", "B", "C")
            # It counts again: the other two can lose one of theirs.
            cluster.crash(leader.node_id)
            await cluster.nodes[forgets].propose(b"two", deadline_s=5.0)
            cluster.crash(forgets)
            await cluster.start(forgets)
            await cluster.start(leader.node_id)
            assert await cluster.converge() == [b"one", b"two"]

    run(scenario(), limit_s=60)


def test_an_empty_store_never_starts_a_second_log_among_others() -> None:
    """Even if its cluster file says voter: only founders may count from nothing."""

    async def scenario() -> None:
        node = RaftNode(
            node_id="A",
            voters=("A", "B"),
            observers=(),
            role=Role.VOTER,
            machine=Recorder(),
            link=MemoryLink(Cluster("A"), "A"),
            store=MemoryStore(),
            clock=asyncio.get_running_loop().time,
            rng=random.Random(1),
        )
        await node.start()
        await elapse(5.0)
        assert (node.term, node.leader) == (0, None)
        assert not node._consensus.counts_itself()
        await node.stop()

    run(scenario(), limit_s=60)
