"""Real peers with a join key: in through a closed window, another key and none stay out."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.peers import Peers, State, cluster_name, loopback_peer

from aivailable.peer.app import new_join_key

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

LOCKED = ("--join-window", "0")


def both_members(states: list[State]) -> bool:
    """Of one cluster of two. (It has one voter: three need three.)"""
    return (
        all(state["phase"] == "member" and state["quorum"] for state in states)
        and len({state["cluster_id"] for state in states}) == 1
        and all(len(state["nodes"]) == 2 for state in states)
    )


async def test_the_same_key_is_let_in_another_is_told_on_both_sides(
    peers: Peers, tmp_path: Path
) -> None:
    cluster, key, other_key = cluster_name(), new_join_key(), new_join_key()
    first = loopback_peer(tmp_path / "first", cluster, flags=(*LOCKED, "--key", key))
    second = loopback_peer(tmp_path / "second", cluster, flags=LOCKED)
    second.environment["AIVAILABLE_KEY"] = key
    wrong = loopback_peer(tmp_path / "wrong", cluster, flags=(*LOCKED, "--key", other_key))
    keyless = loopback_peer(tmp_path / "keyless", cluster, flags=LOCKED)
    peers.peers = [first, second]
    for peer in peers.peers:
        peer.start()
    for peer in peers.peers:
        await peer.listening()
    await peers.until("two members by key", both_members, limit_s=60.0)

    peers.peers += [wrong, keyless]
    for peer in (wrong, keyless):
        peer.start()
        await peer.listening()
    await peers.until(
        "the other key is told on its own side",
        lambda states: states[0]["phase"] == "waiting" and "join key" in states[0]["advice"],
        [wrong],
    )
    await peers.until(
        "and on the cluster's",
        lambda states: any("wrong" in s["advice"] and "join key" in s["advice"] for s in states),
        [first, second],
    )
    await peers.until(
        "one without a key waits for the window",
        lambda states: any(w["name"] == "keyless" for s in states for w in s["waiting"]),
        [first, second],
    )
    states = await peers.states([first, second])
    assert all(len(state["nodes"]) == 2 for state in states)
    for peer in peers.peers:
        for secret in (key, other_key):
            assert secret not in peer.output()
            assert secret not in (peer.home / "logs" / "aivailable.log").read_text()
