"""How long a cluster is without a leader: no clash, no split vote, no false election."""

from __future__ import annotations

import asyncio

import pytest
from fixtures.raft_cluster import Cluster
from fixtures.virtual_time import elapse, run

from aivailable.raft import codec
from aivailable.raft.election import VOTE_RETRY
from aivailable.raft.settings import RaftSettings

SYNC_S = 0.02
DELAY_S = (0.001, 0.008)
STALL_S = 0.3


def silence_leader(cluster: Cluster, leader: str) -> list[str]:
    """Its cable is cut: no link breaks. The others."""
    others = [name for name in cluster.nodes if name != leader]
    for other in others:
        cluster.silence(leader, other)
    return others


def slow_wires(cluster: Cluster) -> None:
    cluster.net.delay_s = DELAY_S


@pytest.mark.parametrize("names", ["ABC", "ABCDE"])
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_all_timers_at_once_elect_in_one_term(names: str, seed: int) -> None:
    """Without the lease they vote for themselves, and again after the next election time."""

    async def scenario() -> None:
        async with Cluster(names, seed=seed, sync_latency_s=SYNC_S) as cluster:
            slow_wires(cluster)
            leader = await cluster.leader()
            others, term = silence_leader(cluster, leader.node_id), leader.term
            await elapse(DELAY_S[1])  # What was under way when the cable was cut.
            loop = asyncio.get_running_loop()
            expired_s = loop.time() + cluster.settings.election_min_s + 0.01
            for name in others:
                cluster.nodes[name]._consensus.set_election_deadline(expired_s)
            await cluster.nodes[others[0]].propose(b"again", deadline_s=5.0)
            assert loop.time() - expired_s < 0.3
            assert {cluster.nodes[name].term for name in others} == {term + 1}

    run(scenario(), limit_s=30)


@pytest.mark.parametrize("names", ["ABC", "ABCDE"])
def test_a_cut_leader_is_replaced_in_one_election(names: str) -> None:
    """Thirty cuts: each in one election, whoever asked first."""

    async def scenario(seed: int) -> tuple[float, int]:
        async with Cluster(names, seed=seed, sync_latency_s=SYNC_S) as cluster:
            slow_wires(cluster)
            leader = await cluster.leader()
            await elapse(0.5 + seed / 97)
            others = silence_leader(cluster, leader.node_id)
            loop = asyncio.get_running_loop()
            cut_s, term = loop.time(), leader.term
            await cluster.nodes[others[-1]].propose(b"again", deadline_s=5.0)
            return loop.time() - cut_s, cluster.nodes[others[-1]].term - term

    longest_s = RaftSettings().election_max_s
    took = [run(scenario(seed), limit_s=30) for seed in range(30)]
    assert max(seconds for seconds, _ in took) < longest_s + 10 * SYNC_S
    assert {terms for _, terms in took} == {1}


def test_a_lost_election_is_held_again_before_a_whole_election_time() -> None:
    async def scenario() -> None:
        async with Cluster("ABC", sync_latency_s=SYNC_S) as cluster:
            slow_wires(cluster)
            leader = await cluster.leader()
            lost_term, loop = leader.term + 1, asyncio.get_running_loop()
            asked: list[float] = []

            def lose(sender: str, receiver: str, data: bytes) -> bool:
                _, message, _ = codec.decode(data)
                if message["type"] == "request_vote":
                    asked.append(loop.time())
                return bool(message["type"] == "response_vote" and message["term"] == lost_term)

            cluster.net.lose = lose
            others = silence_leader(cluster, leader.node_id)
            await cluster.nodes[others[0]].propose(b"again", deadline_s=5.0)
            longest_s = VOTE_RETRY[1] * cluster.settings.election_min_s
            assert len(asked) > 1
            assert loop.time() - asked[0] < longest_s + 0.2

    run(scenario(), limit_s=30)


def test_who_was_favoured_and_does_not_stand_blocks_nobody_for_long() -> None:
    """B gets everybody's yes and dies with it."""

    async def scenario() -> None:
        async with Cluster("ABCDE", sync_latency_s=SYNC_S) as cluster:
            slow_wires(cluster)
            leader = await cluster.leader()
            others, loop = silence_leader(cluster, leader.node_id), asyncio.get_running_loop()
            await elapse(cluster.settings.election_min_s - 0.02)
            first, *rest = others
            cluster.nodes[first]._consensus.set_election_deadline(loop.time() + 0.03)
            await elapse(0.035)
            cluster.crash(first)
            began_s = loop.time()
            await cluster.nodes[rest[0]].propose(b"again", deadline_s=5.0)
            assert loop.time() - began_s < 0.7

    run(scenario(), limit_s=30)


@pytest.mark.parametrize("names", ["ABC", "ABCDE"])
def test_a_leader_that_stalls_keeps_leading(names: str) -> None:
    """Forty stalls of 300 ms, a busy disk or a garbage collection, and not one election."""

    async def scenario() -> None:
        async with Cluster(names, sync_latency_s=SYNC_S) as cluster:
            slow_wires(cluster)
            leader = await cluster.leader()
            term = leader.term
            for _ in range(40):
                silence_leader(cluster, leader.node_id)
                await elapse(STALL_S)
                cluster.net.silent.clear()
                await elapse(0.15)
            assert leader.is_leader
            assert {node.term for node in cluster.nodes.values()} == {term}

    run(scenario(), limit_s=60)
