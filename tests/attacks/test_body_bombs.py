"""S2: a user key sends bodies that are refused. Nobody else may notice."""

from __future__ import annotations

import asyncio
import collections
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from fixtures.peers import PeerProcess, Peers

ATTACKER = Path(__file__).with_name("body_bombs.py")
CONNECTIONS = 12
ATTACK_S = 8.0
ASK_EVERY_S = 0.1
STALL_BOUND_S = 1.5
"""What no loop may stand still for, though three peers and the attacker share two cores with other
tests. Before, it was 5 s and more."""
ANSWER_BOUND_S = 5.0


async def user_key(peers: Peers) -> str:
    body = {"scope": "user", "label": "mallory"}
    made = await peers.ask(peers.peers[0], "POST", "/cluster/v1/keys", body)
    assert made.status == 201, made.body
    return str(made.body["key"])


async def longest_stall_s(peers: Peers, peer: PeerProcess) -> float:
    page = await peers.ask(peer, "GET", "/metrics", limit_s=30.0)
    found = re.search(r"^aivailable_loop_longest_stall_seconds (\S+)", str(page.body), re.M)
    assert found is not None, page.body
    return float(found[1])


def terms(states: list[dict[str, Any]]) -> set[Any]:
    return {(state["term"], state["controller"]) for state in states if state}


async def honest(peers: Peers, peer: PeerProcess) -> int:
    """The status of one short answer; 0 when there was none in time."""
    body = {"model": "fake", "prompt": "hello", "max_tokens": 8}
    try:
        answer = await peers.ask(peer, "POST", "/v1/completions", body, limit_s=ANSWER_BOUND_S)
    except (OSError, aiohttp.ClientError, TimeoutError):
        return 0
    return answer.status


async def attacked(peers: Peers, only: str, connections: int) -> dict[str, Any]:
    """What was seen while `connections` sent bombs for ATTACK_S seconds."""
    await peers.deploy_fake(peers.peers[0])
    key = await user_key(peers)
    await peers.until("every peer knows the key", lambda s: len({x["version"] for x in s}) == 1)
    before = terms(await peers.states())
    assert len(before) == 1
    ports = [str(urlsplit(peer.url).port) for peer in peers.peers]
    command = [sys.executable, str(ATTACKER), key, str(connections), only, *ports]
    attacker = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    seen: dict[str, Any] = {
        "down": set(),
        "statuses": collections.Counter(),
        "longest_answer_s": 0.0,
    }
    assert attacker.stdout is not None
    await attacker.stdout.readline()
    try:
        ends_s = time.monotonic() + ATTACK_S
        while time.monotonic() < ends_s:
            for peer in peers.peers:
                asked_s = time.monotonic()
                seen["statuses"][await honest(peers, peer)] += 1
                took_s = time.monotonic() - asked_s
                seen["longest_answer_s"] = max(seen["longest_answer_s"], took_s)
            for state in await peers.states():
                seen["down"].update(
                    node["name"] for node in state.get("nodes", ()) if node["state"] == "down"
                )
            await asyncio.sleep(ASK_EVERY_S)
        stalls_s = [await longest_stall_s(peers, peer) for peer in peers.peers]
    finally:
        attacker.send_signal(signal.SIGTERM)
        told, _ = await attacker.communicate()
    after = await peers.until("all answer again", all)
    seen |= {"stalls_s": stalls_s, "attacker": json.loads(told)}
    seen["elections"] = terms(after) != before
    print(seen)
    return seen


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_body_bombs_are_refused_and_nobody_else_notices(three: Peers) -> None:
    seen = await attacked(three, "all", CONNECTIONS)
    assert not seen["down"]
    assert not seen["elections"]
    assert set(seen["statuses"]) == {200}
    assert max(seen["stalls_s"]) < STALL_BOUND_S
    assert seen["longest_answer_s"] < ANSWER_BOUND_S
    # Every bomb was answered, and refused for what it is.
    assert set(seen["attacker"]) <= {"400", "404", "413", "429", "503"}, seen["attacker"]
