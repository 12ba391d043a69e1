"""Real peers on loopback that die: the controller, the only host, everyone."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from fixtures.models import smollm2_path
from fixtures.peers import (
    PeerProcess,
    Peers,
    State,
    cluster_name,
    host_of,
    loopback_peer,
    pieces,
    ready,
    voting,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SEES_NOTHING_S = 20.0
"""Generous on a loaded machine; the figure itself is printed, and measured by bench.failover."""


async def by_node(peers: Peers, node: str) -> PeerProcess:
    for peer in peers.peers:
        if peer.alive and (await peers.state(peer)).get("here") == node:
            return peer
    raise AssertionError(f"no live peer is {node}")


def others(peers: Peers, *gone: PeerProcess) -> list[PeerProcess]:
    return [peer for peer in peers.peers if peer not in gone]


async def test_the_controller_dies_while_others_serve(three: Peers) -> None:
    """Another controls, and requests that do not touch the dead node do not notice."""
    states = await three.states()
    controller = await by_node(three, states[0]["controller"])
    calm = others(three, controller)
    await three.deploy_fake(calm[0], options={"step_ms": "20"}, replicas_min=3, replicas_max=3)

    def everywhere(seen: list[State]) -> bool:
        return all(sum(r["status"] == "ready" for r in s["replicas"]) == 3 for s in seen)

    await three.until("a replica on each", everywhere)
    requests = [
        asyncio.ensure_future(three.complete(peer, prompt=f"p{n}", max_tokens=200))
        for n, peer in enumerate(calm)
    ]
    # Both are under way when their slots are busy.
    await three.until("requests run", lambda s: _busy(s) >= 2, [calm[0]])
    killed_s = time.monotonic()
    controller.kill()
    old = states[0]["controller"]
    await three.until(
        "another controls",
        lambda s: all(x["controller"] not in (None, old) and x["quorum"] for x in s),
        calm,
        SEES_NOTHING_S,
    )
    print(f"another controls after {time.monotonic() - killed_s:.2f} s")
    for peer, answer in zip(calm, await asyncio.gather(*requests), strict=True):
        assert answer.status == 200, answer.body
        assert answer.headers["X-AIvailable-Attempts"] == "1"
        assert answer.headers["X-AIvailable-Host"] != old[:8], f"{peer.name} was not served nearby"
        assert answer.body["usage"]["completion_tokens"] == 200


def _busy(states: list[State]) -> int:
    return sum(replica["slots_busy"] for replica in states[0]["replicas"])


async def test_the_host_of_the_only_replica_dies(three: Peers) -> None:
    """The model is placed elsewhere and answers again, and nobody did anything."""
    await three.deploy_fake(three.peers[0])
    state = await three.state(three.peers[0])
    host = await by_node(three, host_of(state, "fake"))
    calm = others(three, host)
    before = await three.complete(calm[0])
    assert before.status == 200, before.body
    host.kill()
    # Sent while nobody serves the model: it waits for the new replica instead of failing.
    answer = await three.complete(calm[0])
    assert answer.status == 200, answer.body
    assert answer.body["choices"][0]["text"] == before.body["choices"][0]["text"]
    seen = await three.until("placed elsewhere", lambda s: all(ready(x, "fake") for x in s), calm)
    assert host_of(seen[0], "fake") != host_of(state, "fake")


async def test_all_die_and_come_back(three: Peers) -> None:
    """Members, deployments and every acknowledged command are back; the term is not lower."""
    await three.deploy_fake(three.peers[0])
    minted = []
    for number, peer in enumerate(three.peers):
        body = {"scope": "user", "label": f"k{number}"}
        answer = await three.ask(peer, "POST", "/cluster/v1/keys", body)
        assert answer.status == 201, answer.body
        minted.append(answer.body["key_id"])
    before = (await three.until("all agree", voting(3)))[0]
    for peer in three.peers:
        peer.kill()
    for peer in three.peers:
        peer.start()
    for peer in three.peers:
        await peer.listening()
    # Before the first leader has committed anew, all three may show the same older version.
    after = (
        await three.until(
            "three voters agree on at least what they had",
            lambda s: voting(3)(s) and all(x["version"] >= before["version"] for x in s),
            limit_s=60.0,
        )
    )[0]
    assert after["cluster_id"] == before["cluster_id"]
    assert after["term"] >= before["term"]
    assert sorted(n["node"] for n in after["nodes"]) == sorted(n["node"] for n in before["nodes"])
    keys = await three.ask(three.peers[2], "GET", "/cluster/v1/keys")
    assert {one["key_id"] for one in keys.body["keys"]} >= set(minted)
    await three.until("it serves again", lambda s: all(ready(x, "fake") for x in s), limit_s=60.0)
    assert (await three.complete(three.peers[1])).status == 200


async def test_a_worker_that_is_killed_comes_back(three: Peers) -> None:
    """Its death is the worker's own: the peer stays, and the replica is started again."""
    await three.deploy_fake(three.peers[0], options={"crash_after": "30"})
    answers = []
    for number in range(4):
        answer = await three.complete(three.peers[number % 3], prompt=f"p{number}", max_tokens=12)
        answers.append(answer.status)
        await three.until("ready again", lambda s: all(ready(x, "fake") for x in s), limit_s=60.0)
    assert answers.count(200) >= 2, answers
    assert all(peer.alive for peer in three.peers)
    events = await three.ask(three.peers[0], "GET", "/cluster/v1/events?limit=256")
    assert any("loading" in one["text"] or "failed" in one["text"] for one in events.body["events"])


async def test_a_stream_through_another_peer_is_whole(three: Peers) -> None:
    await three.deploy_fake(three.peers[0], options={"step_ms": "5"})
    states = await three.states()
    host = host_of(states[0], "fake")
    ingress = next(p for p, s in zip(three.peers, states, strict=True) if s["here"] != host)
    text = ""
    async with three.streaming(ingress, max_tokens=40) as response:
        assert response.status == 200
        assert response.headers["X-AIvailable-Ingress"] != response.headers["X-AIvailable-Host"]
        async for piece in pieces(response):
            text += "".join(choice["text"] for choice in piece["choices"])
    whole = await three.complete(ingress, max_tokens=40)
    assert text == whole.body["choices"][0]["text"]


async def test_a_real_model_is_fetched_from_a_peer_when_its_host_dies(
    peers: Peers, tmp_path: Path
) -> None:
    """The one that has the file is too small to run it: whoever runs it fetches it from there."""
    pytest.importorskip("llama_cpp", reason="no inference engine is installed")
    cluster = cluster_name()
    peers.peers = [
        loopback_peer(tmp_path / f"peer{n}", cluster, devices=size)
        for n, size in ((1, "cpu:16MiB"), (2, "cpu:1GiB"), (3, "cpu:1GiB"))
    ]
    for peer in peers.peers:
        peer.start()
    for peer in peers.peers:
        await peer.listening()
    await peers.until("three voters agree", voting(3), limit_s=60.0)
    keeper = peers.peers[0]
    answer = await peers.deploy(
        keeper, model=str(smollm2_path()), name="smollm2", context=256, slots=1, copies=1
    )
    assert answer.status == 201, answer.body
    states = await peers.until(
        "it is ready", lambda s: all(ready(x, "smollm2") for x in s), limit_s=90.0
    )
    host = await by_node(peers, host_of(states[0], "smollm2"))
    assert host is not keeper
    question = {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0.0}
    before = await peers.complete(keeper, "smollm2", **question)
    assert before.status == 200, before.body
    host.kill()
    after = await peers.complete(keeper, "smollm2", **question)
    assert after.status == 200, after.body
    assert after.headers["X-AIvailable-Host"] != before.headers["X-AIvailable-Host"]
    assert after.body["choices"][0]["text"] == before.body["choices"][0]["text"]


def workers_of(peer: PeerProcess) -> list[int]:
    """Process ids of the peer's workers."""
    assert peer.process is not None
    found = []
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes()
        except (OSError, ValueError, IndexError):
            continue
        if parent == peer.process.pid and b"aivailable.worker" in command:
            found.append(int(entry.name))
    return found


def running(pid: int) -> bool:
    """A zombie that nobody has waited for yet has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_no_worker_outlives_its_peer(three: Peers) -> None:
    """Gone within two seconds of a `kill -9`, so that its memory is free for the next."""
    await three.deploy_fake(three.peers[0])
    host = await by_node(three, host_of(await three.state(three.peers[0]), "fake"))
    workers = workers_of(host)
    assert len(workers) == 1
    host.kill()
    deadline_s = time.monotonic() + 2.0
    while any(running(pid) for pid in workers):
        assert time.monotonic() < deadline_s, "a worker outlived its peer"
        await asyncio.sleep(0.01)


async def test_a_killed_worker_is_reported_and_started_again(three: Peers) -> None:
    await three.deploy_fake(three.peers[0])
    host = await by_node(three, host_of(await three.state(three.peers[0]), "fake"))
    (worker,) = workers_of(host)
    os.kill(worker, signal.SIGKILL)
    answer = await three.complete(others(three, host)[0])
    assert answer.status == 200, answer.body
    assert host.alive
    events = await three.ask(host, "GET", "/cluster/v1/events?limit=256")
    told = " ".join(one["text"] for one in events.body["events"])
    assert "SIGKILL" in told or "signal 9" in told, told


async def test_a_host_that_dies_in_mid_stream(three: Peers) -> None:
    """With a second replica the client gets the whole answer, or an honest end; never a token
    twice."""
    await three.deploy_fake(
        three.peers[0], options={"step_ms": "20"}, replicas_min=2, replicas_max=2
    )

    def two_ready(seen: list[State]) -> bool:
        return all(sum(r["status"] == "ready" for r in s["replicas"]) == 2 for s in seen)

    states = await three.until("two replicas", two_ready)
    hosts = {one["node"] for one in states[0]["replicas"]}
    ingress = next(p for p, s in zip(three.peers, states, strict=True) if s["here"] not in hosts)
    whole = await three.complete(ingress, max_tokens=100)
    assert whole.status == 200, whole.body
    text, errors = "", []
    async with three.streaming(ingress, max_tokens=100) as response:
        host = response.headers["X-AIvailable-Host"]
        async for piece in pieces(response):
            errors += [piece["error"]] if "error" in piece else []
            text += "".join(choice["text"] for choice in piece.get("choices", ()))
            if len(text) > 40 and host:
                node = next(one for one in hosts if one.startswith(host))
                (await by_node(three, node)).kill()
                host = ""
    if errors:
        assert whole.body["choices"][0]["text"].startswith(text)
    else:
        assert text == whole.body["choices"][0]["text"]
    print(f"errors: {errors}")
