"""Real peers whose cluster ends in another: recovered from a survivor, merged by an operator."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from fixtures.peers import Peers, State, cluster_name, loopback_peer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

RECOVER_LIMIT_S = 40.0


def one_cluster(states: list[State]) -> bool:
    return (
        all(state["phase"] == "member" and state["quorum"] for state in states)
        and len({state["cluster_id"] for state in states}) == 1
        and all(len(state["nodes"]) == len(states) for state in states)
    )


async def test_a_survivor_recovers_and_the_old_voter_is_merged_back(
    peers: Peers, tmp_path: Path
) -> None:
    """Two nodes have one voter. It dies, the other founds anew; when it is back after all, there
    are two clusters, which an operator merges."""
    cluster = cluster_name()
    voter, survivor = (loopback_peer(tmp_path / name, cluster) for name in ("one", "two"))
    peers.peers = [voter, survivor]
    voter.start()
    await voter.listening()
    await peers.until("founded", lambda states: states[0]["quorum"], [voter], limit_s=60.0)
    survivor.start()
    await survivor.listening()
    await peers.until("two members", one_cluster, limit_s=60.0)
    old = (await peers.state(voter))["cluster_id"]
    answer = await peers.ask(survivor, "POST", "/cluster/v1/recover")
    assert (answer.status, answer.body["error"]["code"]) == (409, "has_leader")

    voter.kill()
    await peers.until("no leader", lambda states: not states[0]["quorum"], [survivor])
    deadline_s = time.monotonic() + RECOVER_LIMIT_S
    while (answer := await peers.ask(survivor, "POST", "/cluster/v1/recover")).status != 200:
        assert answer.status == 409, answer
        assert time.monotonic() < deadline_s, answer
        await asyncio.sleep(0.5)
    assert answer.body["gone"] == ["one"]
    (fresh,) = await peers.until(
        "founded anew",
        lambda states: states[0]["quorum"] and states[0]["cluster_id"] not in ("", old),
        [survivor],
    )
    survivor.kill()
    survivor.start()
    await survivor.listening()
    await peers.until(
        "resumed", lambda states: states[0]["cluster_id"] == fresh["cluster_id"], [survivor]
    )

    voter.start()
    await voter.listening()
    await peers.until("both see it", lambda states: all(told(old, state) for state in states))
    await peers.ask(voter, "POST", "/cluster/v1/window", {"duration_s": 600})
    answer = await peers.ask(survivor, "POST", "/cluster/v1/merge", {"into": old}, limit_s=30.0)
    assert answer.status == 200, answer
    await peers.until("one cluster again", one_cluster, limit_s=60.0)
    assert (await peers.state(survivor))["cluster_id"] == old


def told(winner: str, state: State) -> bool:
    return f"aivailable merge {winner}" in state["advice"]
