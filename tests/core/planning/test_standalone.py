"""Standalone replicas: what a node runs by itself while the log cannot change, and how that
ends."""

from __future__ import annotations

from dataclasses import replace

from fixtures.cluster_state import (
    cluster,
    deployed,
    deployment,
    device,
    liveness,
    load,
    replica,
    run,
    running,
)

from aivailable.core.ids import CommandId
from aivailable.core.planning.standalone import LEADERLESS_MS, adoptions, wanted_standalone
from aivailable.core.state.commands import AdoptReplica, Command
from aivailable.core.state.machine import apply
from aivailable.core.state.records import Claim, Status
from aivailable.core.state.state import State

ISLAND = "chat#1.island-a"


def lost_host() -> State:
    """`chat` is placed on b; a and c could run it as well, and all hold the file."""
    state = cluster({name: (device(),) for name in "abc"})
    state = replace(state, copies={"d" * 64: ("a", "b", "c")})
    return running(deployed(state, deployment()), replica("chat#1.1", "b"))


def test_a_lone_node_runs_what_nobody_reachable_serves() -> None:
    standalone = wanted_standalone("a", lost_host(), liveness("a"), LEADERLESS_MS, {})
    assert list(standalone) == [ISLAND]
    assert standalone[ISLAND].node == "a"
    assert standalone[ISLAND].claims == (Claim("gpu0", 4 << 30),)


def test_an_election_is_no_lost_quorum() -> None:
    assert wanted_standalone("a", lost_host(), liveness("a"), LEADERLESS_MS - 1, {}) == {}
    assert wanted_standalone("a", lost_host(), liveness("a"), 0, {}) == {}


def test_a_reachable_host_needs_no_island() -> None:
    assert wanted_standalone("a", lost_host(), liveness("ab"), LEADERLESS_MS, {}) == {}


def test_another_nodes_island_is_enough() -> None:
    heard = liveness("ac", loads={"c": (load("chat#1.island-c", island=True),)})
    assert wanted_standalone("a", lost_host(), heard, LEADERLESS_MS, {}) == {}


def test_of_two_survivors_one_starts_it() -> None:
    state = lost_host()
    starters = [
        node
        for node in "ac"
        if wanted_standalone(node, state, liveness("ac", here=node), LEADERLESS_MS, {})
    ]
    assert len(starters) == 1


def test_committed_claims_leave_no_room() -> None:
    state = deployed(lost_host(), deployment(), deployment("other", 5))
    state = running(state, replica("other#1.1", "a", claim_gib=5.0))
    assert wanted_standalone("a", state, liveness("a"), LEADERLESS_MS, {}) == {}


def test_an_island_goes_on_while_nothing_else_serves() -> None:
    state = lost_host()
    standalone = wanted_standalone("a", state, liveness("a"), LEADERLESS_MS, {})
    assert wanted_standalone("a", state, liveness("a"), 0, standalone) == standalone


def test_an_island_drains_once_a_committed_replica_serves() -> None:
    state = lost_host()
    standalone = wanted_standalone("a", state, liveness("a"), LEADERLESS_MS, {})
    heard = liveness("ab", loads={"b": (load("chat#1.1"),)})
    assert wanted_standalone("a", state, heard, 0, standalone)[ISLAND].drain
    starting = liveness("ab", loads={"b": (load("chat#1.1", "loading"),)})
    assert not wanted_standalone("a", state, starting, 0, standalone)[ISLAND].drain


def test_an_island_of_an_old_generation_drains() -> None:
    state = lost_host()
    standalone = wanted_standalone("a", state, liveness("a"), LEADERLESS_MS, {})
    changed = deployed(state, deployment(generation=2))
    assert wanted_standalone("a", changed, liveness("a"), 0, standalone)[ISLAND].drain


def test_a_ready_island_is_offered_and_adopted() -> None:
    state = lost_host()
    standalone = wanted_standalone("a", state, liveness("a"), LEADERLESS_MS, {})
    assert adoptions("a", state, standalone, (ISLAND,)) == (), "b's replica still counts"
    state = replace(state, replicas={})
    assert adoptions("a", state, standalone, ()) == (), "it is not ready"
    (offer,) = adoptions("a", state, standalone, (ISLAND,))
    after = run(state, offer)
    assert after.replicas[ISLAND].status is Status.READY
    assert after.claimed_bytes("a", "gpu0") == 4 << 30
    assert wanted_standalone("a", after, liveness("a"), 0, standalone) == {}, "it is placed now"


def test_adoption_is_refused_when_committed_placements_win() -> None:
    state = lost_host()
    offer = AdoptReplica(ISLAND, "chat", 1, "a", (Claim("gpu0", 4 << 30),))

    def outcome(state: State, body: AdoptReplica, proposer: str = "a") -> str:
        return apply(state, Command(CommandId(proposer, 1), body, "agent"))[1].code

    free = replace(state, replicas={})
    assert outcome(state, offer) == "not_needed"
    assert outcome(free, offer, "b") == "not_yours"
    assert outcome(free, replace(offer, generation=9)) == "conflict"
    assert outcome(free, replace(offer, replica="chat#1.7")) == "invalid_replica"
    assert outcome(free, replace(offer, claims=(Claim("gpu0", 99 << 30),))) == "oversubscribed"
    assert outcome(free, replace(offer, claims=())) == "no_claim"
