"""Consensus among whole nodes: elect, commit, fail over, restart, compact."""

from __future__ import annotations

import asyncio

import pytest
from fixtures.raft_cluster import Cluster
from fixtures.virtual_time import elapse, run

from aivailable.errors import ProposalRejected, ProposalUnknown
from aivailable.raft.settings import RaftSettings


def test_a_voter_of_one_leads_at_once_and_commits() -> None:
    async def scenario() -> None:
        async with Cluster("A") as cluster:
            began = asyncio.get_running_loop().time()
            node = await cluster.leader()
            assert asyncio.get_running_loop().time() - began < 0.1
            await node.propose(b"one", deadline_s=1.0)
            await node.barrier(1.0)
            assert cluster.machines["A"].payloads == [b"one"]
            assert node.leader == "A"

    run(scenario(), limit_s=10)


def test_three_voters_elect_one_and_everyone_can_propose() -> None:
    async def scenario() -> None:
        async with Cluster("ABC", "O") as cluster:
            await cluster.leader()
            loop = asyncio.get_running_loop()
            await cluster.until(lambda: all(node.leader for node in cluster.nodes.values()))
            for name, node in cluster.nodes.items():
                began = loop.time()
                await node.propose(name.encode(), deadline_s=2.0)
                assert name.encode() in cluster.machines[name].payloads
                assert loop.time() - began < 0.04, "waits for a heartbeat"
            assert sum(node.is_leader for node in cluster.nodes.values()) == 1
            assert await cluster.converge() == [b"A", b"B", b"C", b"O"]

    run(scenario(), limit_s=30)


def test_many_proposals_share_their_syncs() -> None:
    async def scenario() -> None:
        async with Cluster("ABC", sync_latency_s=0.004) as cluster:
            node = await cluster.leader()
            before = cluster.stores[node.node_id].syncs
            payloads = [b"%d" % number for number in range(200)]
            await asyncio.gather(*(node.propose(p, deadline_s=5.0) for p in payloads))
            assert cluster.stores[node.node_id].syncs - before < 20
            assert await cluster.converge() == payloads

    run(scenario(), limit_s=30)


@pytest.mark.parametrize("seed", range(5))
def test_a_killed_leader_is_replaced_within_a_second(seed: int) -> None:
    async def scenario() -> None:
        async with Cluster("ABC", seed=seed) as cluster:
            old = await cluster.leader()
            await old.propose(b"before", deadline_s=1.0)
            cluster.crash(old.node_id)
            began = asyncio.get_running_loop().time()
            follower = next(iter(cluster.nodes.values()))
            await follower.propose(b"after", deadline_s=5.0)
            assert asyncio.get_running_loop().time() - began < 1.0
            await cluster.start(old.node_id)
            assert await cluster.converge() == [b"before", b"after"]

    run(scenario(), limit_s=60)


def test_all_restart_from_their_stores() -> None:
    async def scenario() -> None:
        async with Cluster("ABC", "O", sync_latency_s=0.003) as cluster:
            node = await cluster.leader()
            for number in range(20):
                await node.propose(b"%d" % number, deadline_s=2.0)
            term = node.term
            for name in cluster.members:
                cluster.crash(name)
            for name in cluster.members:
                await cluster.start(name)
            assert await cluster.converge() == [b"%d" % number for number in range(20)]
            leader = await cluster.leader()
            assert leader.term > term

    run(scenario(), limit_s=60)


def test_a_lagging_node_gets_a_snapshot() -> None:
    async def scenario() -> None:
        settings = RaftSettings(compact_entries=50)
        async with Cluster("ABC", "O", settings=settings) as cluster:
            node = await cluster.leader()
            lagging = next(name for name in "ABC" if name != node.node_id)
            cluster.isolate(lagging)
            cluster.isolate("O")
            payloads = [b"%d" % n + b"x" * 4000 for n in range(200)]
            await asyncio.gather(*(node.propose(p, deadline_s=5.0) for p in payloads))
            await cluster.until(lambda: node.log_length < 60)
            cluster.heal()
            assert await cluster.converge() == payloads
            assert cluster.machines[lagging].restores == 1
            assert cluster.machines["O"].restores == 1
            for name in cluster.members:
                cluster.crash(name)
            for name in cluster.members:
                await cluster.start(name)
            assert await cluster.converge() == payloads

    run(scenario(), limit_s=60)


def test_no_majority_means_unknown_and_the_entry_survives_healing() -> None:
    async def scenario() -> None:
        async with Cluster("ABC") as cluster:
            node = await cluster.leader()
            cluster.isolate(node.node_id)
            with pytest.raises(ProposalUnknown):
                await node.propose(b"alone", deadline_s=3.0)
            assert not node.is_leader
            other = await cluster.leader()
            await other.propose(b"majority", deadline_s=2.0)
            cluster.heal()
            assert b"majority" in await cluster.converge()
            with pytest.raises(ProposalRejected):
                await node.propose(b"x" * 40_000, deadline_s=1.0)

    run(scenario(), limit_s=60)


def test_the_leader_refuses_what_the_proposer_may_not_say() -> None:
    async def scenario() -> None:
        async with Cluster("ABC") as cluster:
            node = await cluster.leader()
            follower = next(n for n in cluster.nodes.values() if n is not node)
            with pytest.raises(ProposalUnknown):
                await follower.propose(b"forged", deadline_s=1.0)
            await follower.propose(b"fine", deadline_s=1.0)
            assert await cluster.converge() == [b"fine"]

    run(scenario(), limit_s=30)


def test_applied_can_be_told_by_the_state_above() -> None:
    async def scenario() -> None:
        async with Cluster("ABC") as cluster:
            node = await cluster.leader()
            machine = cluster.machines[node.node_id]
            await node.propose(b"x", deadline_s=1.0, applied=lambda: b"x" in machine.payloads)
            before = node.applied_index
            await node.propose(b"x", deadline_s=1.0, applied=lambda: b"x" in machine.payloads)
            assert node.applied_index == before, "known to be applied: not proposed again"

    run(scenario(), limit_s=30)


def test_a_barrier_on_a_follower_sees_what_was_committed() -> None:
    async def scenario() -> None:
        async with Cluster("ABC", "O") as cluster:
            node = await cluster.leader()
            await node.propose(b"x", deadline_s=1.0)
            await cluster.nodes["O"].barrier(2.0)
            assert cluster.machines["O"].payloads == [b"x"]

    run(scenario(), limit_s=30)


def test_the_same_seed_gives_the_same_run() -> None:
    async def scenario() -> tuple[object, ...]:
        async with Cluster("ABC", "O", seed=7) as cluster:
            node = await cluster.leader()
            await node.propose(b"x", deadline_s=1.0)
            cluster.crash(node.node_id)
            await cluster.leader()
            await elapse(3.0)
            now = asyncio.get_running_loop().time()
            return (cluster.leading(), cluster.net.sent, now, node.term)

    assert run(scenario(), limit_s=60) == run(scenario(), limit_s=60)
