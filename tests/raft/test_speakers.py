"""A node that does not vote moves nothing; a node that is behind learns from others who votes."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from fixtures.raft_cluster import Cluster
from fixtures.virtual_time import elapse, run

from aivailable.errors import SchemaError
from aivailable.raft import codec
from aivailable.raft.guards import TERM_JUMP_MAX, Guards

FAR = 2**50
ENTRY = (b"\x00forged", 2, FAR)


def scenario(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def on_virtual_time() -> None:
        run(test(), limit_s=600.0)

    on_virtual_time.__name__, on_virtual_time.__doc__ = test.__name__, test.__doc__
    return on_virtual_time


def harmful(term: int) -> list[dict[str, Any]]:
    """What would move a term, an election or the log, if it were a voter's."""
    vote = {"term": term, "last_log_term": term, "last_log_index": FAR}
    append = {"type": "append_entries", "term": term, "commit_index": FAR}
    return [
        {**append, "prevLogIdx": 1, "prevLogTerm": 0, "entries": (ENTRY,)},
        {**append, "serialized": None},
        {"type": "request_vote", **vote},
        {"type": "request_vote", **vote, "transfer": True},
        {"type": "pre_vote", **vote, "round": 1},
        {"type": "timeout_now", "term": term},
        {"type": "newer_term"},
        {"type": "response_vote", "term": term},
        {"type": "pre_vote_granted", "round": 1},
    ]


def attack(cluster: Cluster, attacker: str, term: int) -> None:
    for name in list(cluster.nodes):
        if name != attacker:
            for message in harmful(term):
                cluster.nodes[name].receive(attacker, codec.encode(term, message))


@scenario
async def test_an_observer_moves_no_term_and_no_election() -> None:
    async with Cluster("ABC", "OP") as cluster:
        leader = await cluster.leader()
        term = leader.term
        for ahead in (0, 1, 500, FAR):
            attack(cluster, "O", term + ahead)
        await elapse(2.0)
        assert {node.term for node in cluster.nodes.values()} == {term}
        assert cluster.leading() == leader.node_id
        assert leader.tally.not_of_voters > 10
        cluster.crash(leader.node_id)
        for _ in range(100):
            attack(cluster, "O", cluster.nodes["P"].term + 1)
            await elapse(0.02)
        heir = await cluster.leader()
        await heir.propose(b"goes on", deadline_s=2.0)
        assert heir.term < term + 20
        assert await cluster.converge() == [b"goes on"]


@scenario
async def test_without_the_guard_one_message_ends_all_elections() -> None:
    guards = Guards(voters_only=False, term_jump=False)
    async with Cluster("ABC", "O", guards=guards) as cluster:
        await cluster.leader()
        attack(cluster, "O", FAR)
        await elapse(1.0)
        assert all(node.term >= FAR for name, node in cluster.nodes.items() if name != "O")


@scenario
async def test_a_voters_term_has_a_bound() -> None:
    async with Cluster("ABC") as cluster:
        leader = await cluster.leader()
        term, other = leader.term, next(n for n in cluster.nodes if n != leader.node_id)
        beyond = term + TERM_JUMP_MAX + 1
        leader.receive(other, codec.encode(beyond, {"type": "newer_term"}))
        assert (leader.term, leader.is_leader) == (term, True)
        leader.receive(other, codec.encode(term + 1000, {"type": "newer_term"}))
        assert leader.term == term + 1000, "a voter back from lone elections is followed"
        await cluster.leader()


@scenario
async def test_a_voter_that_slept_through_all_changes_learns_who_leads() -> None:
    """C's log names A, B and C; since then D and E vote instead of A and B, and D leads."""
    async with Cluster("ABC", "DE") as cluster:
        await cluster.leader()
        cluster.crash("C", keep_written=True)
        for newcomer, gone in (("D", "A"), ("E", "B")):
            leader = await cluster.leader()
            if leader.node_id == gone:
                await leader.transfer_leadership()
                leader = await cluster.leader()
            await cluster.nodes[newcomer].become_voter()
            await leader.add_voter(newcomer)
            if leader.node_id == gone:
                await leader.transfer_leadership()
                leader = await cluster.leader()
            await leader.remove_voter(gone)
            await cluster.nodes[gone].become_observer()
        while (leader := await cluster.leader()).node_id not in "DE":
            await leader.transfer_leadership()
        await leader.propose(b"meanwhile", deadline_s=2.0)
        await cluster.start("C")
        await cluster.converge()
        assert cluster.nodes["C"].voters == ("C", "D", "E")


@scenario
async def test_a_voter_of_former_days_in_a_later_term_follows_again() -> None:
    """It campaigned before it heard that it votes no longer."""
    async with Cluster("ABC") as cluster:
        leader = await cluster.leader()
        former = next(name for name in cluster.nodes if name != leader.node_id)
        cluster.isolate(former)
        await leader.remove_voter(former)
        sleeper = cluster.nodes[former]
        sleeper._consensus.step_down(leader.term + 3)
        cluster.heal()
        await cluster.converge()
        assert former not in (await cluster.leader()).voters


@pytest.mark.parametrize(
    "message",
    [
        {"type": "append_entries", "term": 2**62, "commit_index": 1, "serialized": None},
        {"type": "voters_are", "voters": tuple("n" for _ in range(65))},
        {"type": "voters_are", "voters": (1,)},
    ],
)
def test_what_is_out_of_range_is_malformed(message: dict[str, Any]) -> None:
    with pytest.raises(SchemaError):
        codec.decode(codec.encode(1, message))
