"""Linearizable reads: after a barrier, on any node, all that was acknowledged before it is seen."""

from __future__ import annotations

import asyncio

import pytest
from fixtures.raft_cluster import Cluster
from fixtures.virtual_time import elapse, run

from aivailable.errors import ProposalUnknown
from aivailable.raft.settings import RaftSettings


def test_an_observer_reads_what_was_acknowledged_elsewhere_a_moment_ago() -> None:
    async def scenario() -> None:
        async with Cluster("ABC", "O") as cluster:
            leader = await cluster.leader()
            for number in range(20):
                payload = b"%d" % number
                await leader.propose(payload, deadline_s=1.0)
                await cluster.nodes["O"].barrier(1.0)
                assert payload in cluster.machines["O"].payloads

    run(scenario(), limit_s=60)


@pytest.mark.parametrize("reader", ["observer", "follower"])
def test_a_barrier_outlives_the_loss_of_the_leader(reader: str) -> None:
    async def scenario() -> None:
        async with Cluster("ABC", "O") as cluster:
            leader = await cluster.leader()
            name = "O" if reader == "observer" else next(n for n in "ABC" if n != leader.node_id)
            await leader.propose(b"acknowledged", deadline_s=1.0)
            reading = asyncio.create_task(cluster.nodes[name].barrier(5.0))
            cluster.crash(leader.node_id)
            await reading
            assert b"acknowledged" in cluster.machines[name].payloads
            assert cluster.leading() not in (None, leader.node_id)

    run(scenario(), limit_s=60)


def test_a_leader_that_is_cut_off_reads_nothing_stale() -> None:
    async def scenario() -> None:
        async with Cluster("ABC") as cluster:
            old = await cluster.leader()
            for other in "ABC":
                if other != old.node_id:
                    cluster.silence(old.node_id, other)
            reading = asyncio.create_task(old.barrier(10.0))
            assert old.is_leader, "it does not know yet"
            new = await cluster.leader(among="ABC".replace(old.node_id, ""))
            await new.propose(b"newer", deadline_s=2.0)
            assert not reading.done()
            cluster.heal()
            await reading
            assert b"newer" in cluster.machines[old.node_id].payloads

    run(scenario(), limit_s=60)


def test_a_barrier_without_a_majority_says_that_it_does_not_know() -> None:
    async def scenario() -> None:
        async with Cluster("ABC", "O") as cluster:
            await cluster.leader()
            for name in "AB":
                cluster.crash(name)
            with pytest.raises(ProposalUnknown):
                await cluster.nodes["O"].barrier(3.0)

    run(scenario(), limit_s=60)


def test_a_barrier_of_an_observer_that_gets_a_snapshot_meanwhile() -> None:
    async def scenario() -> None:
        async with Cluster("ABC", "O", settings=RaftSettings(compact_entries=20)) as cluster:
            leader = await cluster.leader()
            cluster.isolate("O")
            reading = asyncio.create_task(cluster.nodes["O"].barrier(10.0))
            await asyncio.gather(*(leader.propose(b"%d" % n, deadline_s=2.0) for n in range(100)))
            await cluster.until(lambda: leader.log_length < 20)
            cluster.heal()
            await reading
            assert cluster.machines["O"].restores == 1
            assert len(cluster.machines["O"].payloads) == 100

    run(scenario(), limit_s=60)


def test_barriers_while_leaders_are_handed_over() -> None:
    async def scenario() -> None:
        async with Cluster("ABC", "O") as cluster:
            for number in range(6):
                leader = await cluster.leader()
                payload = b"%d" % number
                await leader.propose(payload, deadline_s=1.0)
                readings = [node.barrier(3.0) for node in cluster.nodes.values()]
                await asyncio.gather(leader.transfer_leadership(), *readings)
                assert all(payload in machine.payloads for machine in cluster.machines.values())
                await elapse(1.1)

    run(scenario(), limit_s=60)
