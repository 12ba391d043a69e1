"""Voters come and go, one at a time, without a moment in which two majorities could decide."""

from __future__ import annotations

import asyncio

import pytest
from fixtures.raft_cluster import Cluster
from fixtures.virtual_time import elapse, run
from hypothesis import given
from hypothesis import strategies as st

from aivailable.core.state.records import Role
from aivailable.errors import ProposalError, ProposalRejected
from aivailable.raft.library import NO_OP
from aivailable.raft.membership import (
    after,
    change_command,
    founders,
    in_force,
    names,
    parse_change,
)
from aivailable.raft.settings import RaftSettings


async def promote(cluster: Cluster, name: str) -> None:
    leader = await cluster.leader()
    await cluster.until(lambda: leader.caught_up(name))
    await cluster.nodes[name].become_voter(leader.voters)
    await leader.add_voter(name)


def test_one_voter_becomes_three_and_outlives_the_first() -> None:
    async def scenario() -> None:
        async with Cluster("A", "BC") as cluster:
            first = await cluster.leader()
            await first.propose(b"alone", deadline_s=1.0)
            await promote(cluster, "B")
            assert first.voters == ("A", "B")
            await promote(cluster, "C")
            await cluster.converge()
            assert {node.voters for node in cluster.nodes.values()} == {("A", "B", "C")}
            cluster.crash("A")
            await cluster.nodes["C"].propose(b"two left", deadline_s=5.0)
            await cluster.start("A")
            assert await cluster.converge() == [b"alone", b"two left"]
            assert cluster.nodes["A"].voters == ("A", "B", "C")

    run(scenario(), limit_s=60)


@pytest.mark.parametrize("compacted", [False, True])
def test_membership_survives_a_restart_of_all(compacted: bool) -> None:
    async def scenario() -> None:
        settings = RaftSettings(compact_entries=20)
        async with Cluster("A", "BC", settings=settings) as cluster:
            node = await cluster.leader()
            await promote(cluster, "B")
            await promote(cluster, "C")
            if compacted:
                await asyncio.gather(*(node.propose(b"%d" % n, deadline_s=2.0) for n in range(100)))
                await cluster.until(lambda: all(n.log_length < 20 for n in cluster.nodes.values()))
            for name in "ABC":
                cluster.crash(name)
            for name in "ABC":
                await cluster.start(name)
            await cluster.converge()
            assert {n.voters for n in cluster.nodes.values()} == {("A", "B", "C")}
            assert {n.role for n in cluster.nodes.values()} == {Role.VOTER}

    run(scenario(), limit_s=60)


def test_a_removed_voter_goes_on_as_an_observer() -> None:
    async def scenario() -> None:
        async with Cluster("ABC") as cluster:
            leader = await cluster.leader()
            gone = next(name for name in "ABC" if name != leader.node_id)
            await leader.remove_voter(gone)
            await cluster.until(lambda: gone not in cluster.nodes[gone].voters)
            await cluster.nodes[gone].become_observer()
            term = leader.term
            await leader.propose(b"x", deadline_s=1.0)
            await elapse(5.0)
            assert await cluster.converge() == [b"x"]
            assert cluster.nodes[gone].role is Role.OBSERVER
            assert (await cluster.leader()).term == term

    run(scenario(), limit_s=60)


def test_a_removal_that_the_leader_forgets_stops_nobody() -> None:
    """Else the removed voter alone has the entry, and can neither stand nor vote (a long storm)."""

    async def scenario() -> None:
        async with Cluster("AB") as cluster:
            leader = await cluster.leader()
            other = "B" if leader.node_id == "A" else "A"
            await leader.propose(b"x", deadline_s=1.0)
            cluster.stores[leader.node_id].latency_s = 0.2
            removing = asyncio.create_task(leader.remove_voter(other))
            await cluster.until(lambda: other not in leader.voters)
            await elapse(0.05)
            cluster.crash(leader.node_id)
            with pytest.raises(ProposalError):
                await removing
            with pytest.raises(ProposalRejected, match="through the leader"):
                await cluster.nodes[other].become_observer()
            cluster.stores[leader.node_id].latency_s = 0.0
            await cluster.start(leader.node_id)
            await (await cluster.leader()).propose(b"y", deadline_s=2.0)
            assert await cluster.converge() == [b"x", b"y"]

    run(scenario(), limit_s=60)


def test_a_removed_voter_that_does_not_know_cannot_disturb() -> None:
    async def scenario() -> None:
        async with Cluster("ABC") as cluster:
            leader = await cluster.leader()
            gone = next(name for name in "ABC" if name != leader.node_id)
            cluster.isolate(gone)
            await leader.remove_voter(gone)
            term = leader.term
            cluster.heal()
            for node in cluster.nodes.values():
                node.set_observers(())
            await elapse(10.0)
            assert leader.is_leader
            assert leader.term == term

    run(scenario(), limit_s=60)


def test_refusals_say_why() -> None:
    async def scenario() -> None:
        async with Cluster("ABC") as cluster:
            leader = await cluster.leader()
            follower = next(node for node in cluster.nodes.values() if node is not leader)
            for refused, code in (
                (leader.remove_voter(leader.node_id), "leader"),
                (follower.add_voter("D"), "not_leader"),
                (follower.become_observer(), "still_voter"),
                (follower.become_voter(("Z",)), "behind"),
            ):
                with pytest.raises(ProposalRejected) as caught:
                    await refused
                assert caught.value.code == code

    run(scenario(), limit_s=30)


def test_leadership_is_handed_over_without_a_pause() -> None:
    async def scenario() -> None:
        async with Cluster("ABC") as cluster:
            old = await cluster.leader()
            began = asyncio.get_running_loop().time()
            await old.transfer_leadership()
            new = await cluster.leader()
            await new.propose(b"x", deadline_s=1.0)
            assert new is not old
            assert asyncio.get_running_loop().time() - began < 0.2
            await new.remove_voter(old.node_id)
            assert old.node_id not in new.voters

    run(scenario(), limit_s=30)


@given(st.lists(st.tuples(st.sampled_from(["add", "rem"]), st.sampled_from("ABCD")), max_size=30))
def test_replaying_history_on_a_later_base_ends_the_same(
    changes: list[tuple[str, str]],
) -> None:
    """Why an observer that joins with today's voters may replay the log from its begin."""
    log = [(change_command(v, n, 9), i, 1) for i, (v, n) in enumerate(changes, 2)]  # type: ignore[arg-type]
    final = in_force(founders("A"), log)
    assert in_force(founders(names(final)), log) == final


def test_only_changes_parse_as_changes() -> None:
    assert parse_change(change_command("add", "x", 7)) == ("add", "x", 7)
    for other in (NO_OP, b"\x02", b"\x02\xc1", b"\x00abc", b"\x02\x93\x01\x02\x03"):
        assert parse_change(other) is None
    assert after(founders("BA"), ("rem", "B", 3)) == founders("A")
