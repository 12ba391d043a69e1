"""Machines of one name, and a deployment in the seconds after `up`: both ask back, or wait."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from fixtures.peers import MIB, PeerProcess, Peers, State, cluster_name, host_of, loopback_peer
from fixtures.printed import printed, run_printed

from aivailable.advice import DEPLOY

FAKE = ("--engine", "fake", "--option", f"need_bytes={MIB}")
SLOW_TO_TELL = """
import os, sys
if "up" in sys.orig_argv:
    import asyncio
    from aivailable.peer.serving.agent import Agent
    tell = Agent.tell_inventory
    async def slowly(self):
        while not os.path.exists(os.environ["DEVICES_KNOWN"]):
            await asyncio.sleep(0.05)
        await tell(self)
    Agent.tell_inventory = slowly
"""
"""A node whose devices are known late, as when its first trial of a card takes long."""


def pair(states: list[State]) -> bool:
    return all(
        state["quorum"] and len(state["nodes"]) == 2 and all(n["devices"] for n in state["nodes"])
        for state in states
    )


def asked_again(peer: PeerProcess) -> None:
    """Until the command line was refused twice: by then it waits."""
    log = peer.home / "logs" / "aivailable.log"
    for _ in range(600):
        if log.read_text().count("route=POST /cluster/v1/deployments ") >= 3:
            return
        time.sleep(0.05)
    raise AssertionError("it does not ask again")


@pytest.mark.slow
async def test_two_machines_of_one_name_are_told_apart_and_understood(
    peers: Peers, tmp_path: Path
) -> None:
    cluster = cluster_name()
    peers.peers = [loopback_peer(tmp_path / one / "vm", cluster) for one in ("a", "b")]
    for peer in peers.peers:
        peer.start()
        await peer.listening()
        await peers.until("a member", lambda s: s[0]["quorum"], [peer])
    states = await peers.until("both", pair)
    here = peers.peers[0]
    shown = {node["name"]: node["node"] for node in states[0]["nodes"]}
    assert sorted(shown) == sorted({f"vm-{node[:4]}" for node in shown.values()})

    for line in (
        "aivailable drain vm",
        "aivailable pause 1h vm",
        "aivailable remove vm --yes",
        f"{DEPLOY.of('small').line} --on vm {' '.join(FAKE)}",
        f"{DEPLOY.of('small').line} --not-on vm {' '.join(FAKE)}",
    ):
        refused = await run_printed(here, line)
        assert refused.code == 1, refused.output
        assert all(name in refused.output for name in shown), refused.output

    first, second = sorted(shown)
    drained = await run_printed(here, f"aivailable drain {first}")
    assert drained.code == 0, drained.output
    (line,) = printed(drained.output)
    assert line == f"aivailable undrain {first}"
    assert (await run_printed(here, line)).code == 0
    for name in (second, first):
        line = f"{DEPLOY.of(f'on-{name}').line} --on {name}"
        done = await run_printed(here, line, *FAKE)
        assert done.code == 0, done.output
        (state,) = await peers.states([here])
        assert host_of(state, f"on-{name}") == shown[name]


async def test_a_deployment_waits_for_who_has_not_told_its_devices(
    peers: Peers, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW_TO_TELL)
    peer = loopback_peer(tmp_path / "one", cluster_name())
    peer.environment["PYTHONPATH"] = f"{tmp_path}:{peer.environment['PYTHONPATH']}"
    known = tmp_path / "known"
    peer.environment["DEVICES_KNOWN"] = str(known)
    peers.peers = [peer]
    peer.start()
    await peer.listening()
    await peers.until("founded", lambda s: s[0]["quorum"])
    asked = await peers.deploy(peer, model="early", engine="fake", options={})
    assert (asked.status, asked.body["error"]["code"]) == (409, "devices_not_told"), asked.body
    assert "the devices of one are not known yet" in asked.body["error"]["message"]
    waiting = asyncio.ensure_future(run_printed(peer, DEPLOY.of("early").line, *FAKE))
    await asyncio.to_thread(asked_again, peer)
    known.touch()
    done = await waiting
    assert done.code == 0, done.output
    assert "one: has not told its devices yet" in done.output
    assert "Waiting for them" in done.output
    assert "is ready" in done.output
