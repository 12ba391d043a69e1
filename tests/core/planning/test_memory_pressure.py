"""Other programs and owners: what is planned shrinks, what runs leaves one by one at worst."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fixtures.cluster_state import (
    GIB,
    cluster,
    deployed,
    deployment,
    device,
    liveness,
    load,
    replica,
    report,
    running,
    settle,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from aivailable.core.cluster.liveness import Liveness
from aivailable.core.planning.memory_pressure import TIGHT_MS, tight_bytes
from aivailable.core.planning.planner import explanations, plan
from aivailable.core.state.commands import Drain, Place
from aivailable.core.state.invariants import violations
from aivailable.core.state.records import Backend, ClusterSettings, Status
from aivailable.core.state.state import State
from aivailable.wire.peer import DeviceLoad

MARGIN = ClusterSettings().margin_bytes


def card(*, pin: bool = False) -> State:
    """Two models of 3 GiB on a real card of 8 GiB; the second one is worth more."""
    state = deployed(
        cluster({"a": (device(backend=Backend.CUDA),)}),
        deployment("less", 3, pin=pin),
        deployment("more", 3, priority=1),
    )
    return running(
        state,
        replica("less#1.1", "a", claim_gib=3),
        replica("more#1.1", "a", claim_gib=3),
    )


def told(free_bytes: int, tight_ms: int = 0) -> Liveness:
    loads = (load("less#1.1", idle_ms=1), load("more#1.1", idle_ms=900_000))
    devices = {"a": (DeviceLoad("gpu0", free_bytes, tight_ms=tight_ms),)}
    return liveness("a", loads={"a": loads}, devices=devices)


def test_growth_shrinks_what_is_planned_and_touches_nothing_that_runs() -> None:
    state = deployed(card(), deployment("new", 1))
    assert any(isinstance(body, Place) for body in plan(state, told(2 * GIB)))
    assert plan(state, told(GIB)) == ()
    assert "needs 1.0 GiB" in explanations(state, told(GIB))["new"]
    assert plan(card(), told(0)) == ()


@pytest.mark.parametrize(("tight_ms", "pin"), [(TIGHT_MS - 1, False), (TIGHT_MS, True)])
def test_a_peak_passes_and_the_pinned_stay(tight_ms: int, pin: bool) -> None:
    state = card(pin=pin)
    if pin:
        state = replace(state, replicas={"less#1.1": state.replicas["less#1.1"]})
        state = replace(state, deployments={"less": state.deployments["less"]})
    assert plan(state, told(0, tight_ms)) == ()


def test_about_to_run_out_the_least_valuable_leaves_one_at_a_time() -> None:
    state, bodies = settle(card(), told(0, TIGHT_MS))
    assert bodies == (Drain("less#1.1"),)
    assert plan(state, told(0, 10 * TIGHT_MS)) == (), "the first one is still going"
    state = report(state, "less#1.1", Status.GONE)
    state, bodies = settle(state, told(3 * GIB))
    assert bodies == (), "it left at a quarter of the margin, and would need all of it"
    assert "less" in explanations(state, told(3 * GIB))


def test_it_goes_where_there_is_room() -> None:
    state = card()
    nodes = cluster({"a": (device(backend=Backend.CUDA),), "b": (device(),)})
    state = replace(state, members=nodes.members, inventories=nodes.inventories)
    heard = told(0, TIGHT_MS)
    both = liveness("ab", loads={"a": heard.heard["a"].heartbeat.replicas})
    beat = replace(both.heard["a"].heartbeat, devices=heard.heard["a"].heartbeat.devices)
    both = replace(both, heard={**both.heard, "a": replace(both.heard["a"], heartbeat=beat)})
    _, bodies = settle(state, both)
    assert [type(body).__name__ for body in bodies] == ["Drain", "Place"]
    assert [body.node for body in bodies if isinstance(body, Place)] == ["b"]


def test_without_a_margin_nothing_is_ever_tight() -> None:
    assert tight_bytes(ClusterSettings(margin_bytes=0)) == 0
    assert 0 < tight_bytes(ClusterSettings()) < MARGIN


def paused(heard: Liveness, node: str, left_s: int = 60) -> Liveness:
    beat = replace(heard.heard[node].heartbeat, paused_left_s=left_s)
    return replace(heard, heard={**heard.heard, node: replace(heard.heard[node], heartbeat=beat)})


def test_a_paused_node_is_emptied_and_takes_nothing() -> None:
    state = deployed(cluster({node: (device(),) for node in "ab"}), deployment())
    state = running(state, replica("chat#1.1", "a"))
    heard = liveness("ab", loads={"a": (load("chat#1.1", slots_busy=1),)})
    _, bodies = settle(state, paused(heard, "a"))
    assert [type(body).__name__ for body in bodies] == ["Drain", "Place"]
    alone = deployed(cluster({"a": (device(),)}), deployment())
    assert plan(alone, paused(liveness("a"), "a")) == ()
    assert (
        "paused by its owner for another 1 min"
        in explanations(alone, paused(liveness("a"), "a"))["chat"]
    )
    assert len(plan(alone, liveness("a"))) == 1


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(-1, 1), st.booleans()), min_size=1, max_size=4
    ),
    st.integers(0, 8 * GIB),
    st.sampled_from([0, TIGHT_MS]),
    st.booleans(),
)
def test_one_device_loses_one_replica_at_most_and_no_plan_is_left_over(
    rows: list[tuple[int, int, bool]], free: int, tight_ms: int, owner_wants_it: bool
) -> None:
    wanted = [
        deployment(f"d{i}", gib, priority=priority, pin=pin)
        for i, (gib, priority, pin) in enumerate(rows)
    ]
    state = deployed(cluster({"a": (device(gib=16, backend=Backend.CUDA),)}), *wanted)
    empty = liveness("a", devices={"a": (DeviceLoad("gpu0", 16 * GIB),)})
    state, _ = settle(state, empty)
    for name in sorted(state.replicas):
        state = report(state, name, Status.LOADING, Status.READY)
    heard = liveness("a", devices={"a": (DeviceLoad("gpu0", free, tight_ms=tight_ms),)})
    heard = paused(heard, "a", 60 if owner_wants_it else 0)
    pinned = {entry.name: entry.pin for entry in wanted}
    before = state
    state, bodies = settle(state, heard)
    drained = [before.replicas[b.replica].deployment for b in bodies if isinstance(b, Drain)]
    assert violations(state) == ()
    if owner_wants_it:
        assert len(drained) == len(before.replicas)
        return
    free_to_go = any(not pinned[entry.deployment] for entry in before.replicas.values())
    assert len(drained) == (1 if tight_ms and free_to_go else 0)
    assert not any(pinned[name] for name in drained)
