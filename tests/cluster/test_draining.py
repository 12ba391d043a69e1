"""A node of a real cluster is emptied while it serves, and takes part again."""

from __future__ import annotations

import asyncio

import pytest
from fixtures.peers import Peers, State, host_of, ready

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


async def test_what_runs_on_a_drained_node_moves_and_nothing_is_cut(three: Peers) -> None:
    await three.deploy_fake(three.peers[0], options={"step_ms": "20"})
    states = await three.states()
    host = host_of(states[0], "fake")
    hosting = next(p for p, s in zip(three.peers, states, strict=True) if s["here"] == host)
    calm = next(peer for peer in three.peers if peer is not hosting)
    under_way = asyncio.ensure_future(three.complete(calm, max_tokens=100))
    await three.until("it runs", lambda s: s[0]["replicas"][0]["slots_busy"] == 1, [calm])
    done = await three.ask(calm, "POST", f"/cluster/v1/nodes/{hosting.name}/drain")
    assert done.status == 200, done.body
    assert (done.body["node"], done.body["changed"], done.body["staying"]) == (host, True, [])

    def moved(seen: list[State]) -> bool:
        return all(ready(s, "fake") and host_of(s, "fake") != host for s in seen)

    await three.until("it answers elsewhere", moved)
    answer = await under_way
    assert answer.status == 200, answer.body
    assert answer.body["usage"]["completion_tokens"] == 100
    assert answer.headers["X-AIvailable-Attempts"] == "1"
    after = await three.until(
        "the node is empty", lambda s: all(r["node"] != host for x in s for r in x["replicas"])
    )
    assert all(n["draining"] == (n["node"] == host) for s in after for n in s["nodes"])
    fresh = await three.complete(hosting)
    assert fresh.status == 200, fresh.body
    assert fresh.headers["X-AIvailable-Host"] != host[:8]

    again = await three.ask(calm, "POST", f"/cluster/v1/nodes/{hosting.name}/undrain")
    assert (again.status, again.body["changed"]) == (200, True)
    await three.deploy_fake(calm, "wide", replicas_min=3, replicas_max=3)

    def everywhere(seen: list[State]) -> bool:
        return all(
            sum(r["deployment"] == "wide" and r["status"] == "ready" for r in s["replicas"]) == 3
            for s in seen
        )

    await three.until("a replica on each, the drained one too", everywhere)
