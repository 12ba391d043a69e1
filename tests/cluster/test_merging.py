"""Real peers whose cluster ends in another: recovered from a survivor, merged by an operator."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from fixtures.peers import PeerProcess, Peers, State, cluster_name, loopback_peer
from fixtures.printed import printed, run_printed

from aivailable.peer.app import new_join_key

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

RECOVER_LIMIT_S = 40.0
MERGE_LIMIT_S = 60.0
LOCKED = ("--join-window", "0")


def one_cluster(states: list[State]) -> bool:
    return (
        all(state["phase"] == "member" and state["quorum"] for state in states)
        and len({state["cluster_id"] for state in states}) == 1
        and all(len(state["nodes"]) == len(states) for state in states)
    )


@pytest.mark.remedy("merge")
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
    admit, merge = printed((await peers.state(survivor))["advice"])
    assert (await run_printed(voter, admit)).code == 0
    ended = await run_printed(survivor, merge, "--yes")
    assert ended.code == 0, ended.output
    await peers.until("one cluster again", one_cluster, limit_s=60.0)
    assert (await peers.state(survivor))["cluster_id"] == old


def told(winner: str, state: State) -> bool:
    return f"aivailable merge {winner}" in state["advice"]


def keyed(home: Path, cluster: str, key: str) -> PeerProcess:
    """A peer that admits by the join key only."""
    return loopback_peer(home, cluster, flags=(*LOCKED, "--key", key))


async def apart(peers: Peers, *groups: list[PeerProcess]) -> list[str]:
    """Each group founds a cluster while the others are off; then all are on. Returns the ids."""
    for group in groups:
        peers.peers = list(group)
        for peer in group:
            peer.start()
        await asyncio.gather(*(peer.listening() for peer in group))
        await peers.until("a cluster", one_cluster, limit_s=60.0)
        if group is not groups[-1]:
            for peer in group:
                peer.kill()
    peers.peers = [peer for group in groups for peer in group]
    for peer in peers.peers:
        if not peer.alive:
            peer.start()
    await asyncio.gather(*(peer.listening() for peer in peers.peers))
    return [(await peers.state(group[-1]))["cluster_id"] for group in groups]


def usable(states: list[State]) -> bool:
    return one_cluster(states) and all(node["devices"] for s in states for node in s["nodes"])


@pytest.mark.long
async def test_unused_clusters_of_one_key_become_one_by_themselves(
    peers: Peers, tmp_path: Path
) -> None:
    """Both windows are closed all the time: the key, proved both ways, is enough."""
    cluster, key = cluster_name(), new_join_key()
    first = [keyed(tmp_path / name, cluster, key) for name in ("a1", "a2")]
    second = [keyed(tmp_path / name, cluster, key) for name in ("b1", "b2")]
    ids = await apart(peers, first, second)
    states = await peers.until("one cluster of four", one_cluster, limit_s=MERGE_LIMIT_S)
    assert states[0]["cluster_id"] in ids
    assert not any(state["window_open"] for state in states)


async def test_used_clusters_and_other_keys_stay_apart_and_say_why(
    peers: Peers, tmp_path: Path
) -> None:
    """Deployments on both sides wait for the operator; another key is refused even then."""
    cluster, key, other_key = cluster_name(), new_join_key(), new_join_key()
    one, two = keyed(tmp_path / "one", cluster, key), keyed(tmp_path / "two", cluster, other_key)
    peers.peers = [one]
    one.start()
    await one.listening()
    await peers.until("founded", usable, limit_s=60.0)
    await peers.deploy_fake(one, "ours")
    one.kill()
    peers.peers = [two]
    two.start()
    await two.listening()
    await peers.until("founded", usable, limit_s=60.0)
    await peers.deploy_fake(two, "theirs")
    one.start()
    await one.listening()
    peers.peers = [one, two]
    states = await peers.until(
        "both see it", lambda s: all("aivailable merge" in state["advice"] for state in s)
    )
    ids = [state["cluster_id"] for state in states]
    assert len(set(ids)) == 2
    loser, winner = sorted((0, 1), key=lambda index: ids[index], reverse=True)
    merge = {"into": ids[winner]}
    answer = await peers.ask(peers.peers[loser], "POST", "/cluster/v1/merge", merge, limit_s=30.0)
    assert (answer.status, answer.body["error"]["code"]) == (409, "bad_proof"), answer
    assert "another join key" in answer.body["error"]["message"]
    assert [state["cluster_id"] for state in await peers.states()] == ids
    told_there = "asks with another join key"
    log = (peers.peers[winner].home / "logs" / "aivailable.log").read_text()
    assert log.count(told_there) == 1

    two.kill()
    two.flags = tuple(key if flag == other_key else flag for flag in two.flags)
    two.start()
    await two.listening()
    await peers.until(
        "both see it again", lambda s: all("aivailable merge" in state["advice"] for state in s)
    )
    answer = await peers.ask(peers.peers[loser], "POST", "/cluster/v1/merge", merge, limit_s=30.0)
    assert answer.status == 200, answer
    states = await peers.until("one cluster", one_cluster, limit_s=MERGE_LIMIT_S)
    assert states[0]["cluster_id"] == ids[winner]
    await peers.until(
        "both deployments",
        lambda s: all({d["name"] for d in x["deployments"]} == {"ours", "theirs"} for x in s),
        limit_s=MERGE_LIMIT_S,
    )
