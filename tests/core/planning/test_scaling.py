"""Between minimum and maximum: more of what is busy, in room that is free, and back first."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fixtures.cluster_state import (
    cluster,
    deployed,
    deployment,
    device,
    liveness,
    load,
    obey,
    replica,
    run,
    running,
    settle,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from aivailable.core.planning.idle_policy import ReplicaUsage
from aivailable.core.planning.planner import plan
from aivailable.core.planning.scaling import QUEUED_MS, SPARE_BUSY
from aivailable.core.state.commands import Body, Drain, Place, SetDraining
from aivailable.core.state.invariants import violations
from aivailable.core.state.records import Status
from aivailable.core.state.state import State
from aivailable.wire.peer import Demand, ReplicaLoad

TTL_MS = 600_000


def kinds(bodies: tuple[Body, ...]) -> list[str]:
    return [type(body).__name__ for body in bodies]


def spread(gib: float = 4.0, *, most: int = 3, spare_fill: bool = True) -> State:
    """chat runs on a, with room for one more on b and on c."""
    state = deployed(
        cluster({node: (device(),) for node in "abc"}), deployment(gib=gib, replicas_max=most)
    )
    state = replace(state, settings=replace(state.settings, spare_fill=spare_fill))
    return running(state, replica("chat#1.1", "a", claim_gib=gib))


@pytest.mark.parametrize(
    ("changes", "spare_fill", "places"),
    [
        ({}, True, 0),
        ({"queued_ms": QUEUED_MS - 1, "slots_busy": 4, "waiting": 1}, True, 0),
        ({"queued_ms": QUEUED_MS, "slots_busy": 4, "waiting": 1}, True, 1),
        ({"queued_ms": QUEUED_MS, "slots_busy": 4, "waiting": 1}, False, 1),
        ({"busy": SPARE_BUSY - 0.01}, True, 0),
        ({"busy": SPARE_BUSY}, True, 1),
        ({"busy": SPARE_BUSY}, False, 0),
    ],
)
def test_grows_when_requests_queue_and_into_spare_room_when_busy(
    changes: dict[str, object], spare_fill: bool, places: int
) -> None:
    told = liveness("abc", loads={"a": (load("chat#1.1", **changes),)})
    _, bodies = settle(spread(spare_fill=spare_fill), told)
    assert kinds(bodies) == ["Place"] * places


def test_one_at_a_time_up_to_the_maximum() -> None:
    full = {"queued_ms": QUEUED_MS, "slots_busy": 4, "busy": 1.0}
    state, counts = spread(most=2), []
    for _ in range(4):
        loads = {entry.node: (load(entry.replica, **full),) for entry in state.replicas_of("chat")}
        state, _ = settle(state, liveness("abc", loads=loads))
        counts.append(len(state.replicas))
        state = obey(state)
    assert counts == [2, 2, 2, 2]
    starting = spread()
    told = liveness("abc", loads={"a": (load("chat#1.1", **full),)})
    starting, _ = settle(starting, told)
    assert plan(starting, told) == (), "the second one may be enough"


def test_one_replica_with_a_free_slot_is_enough() -> None:
    state = running(spread(spare_fill=False), replica("chat#1.2", "b"))
    loads = {
        "a": (load("chat#1.1", queued_ms=QUEUED_MS, slots_busy=4),),
        "b": (load("chat#1.2", slots_busy=1),),
    }
    assert plan(state, liveness("abc", loads=loads)) == ()


def test_growing_moves_and_evicts_nothing() -> None:
    state = deployed(
        cluster({node: (device(),) for node in "ab"}),
        deployment(gib=6, replicas_max=2, priority=9),
        deployment("other", 6, replicas_min=0),
    )
    state = running(
        state,
        replica("chat#1.1", "a", claim_gib=6),
        replica("other#1.1", "b", claim_gib=6),
    )
    loads = {
        "a": (load("chat#1.1", queued_ms=QUEUED_MS, busy=1.0),),
        "b": (load("other#1.1", idle_ms=TTL_MS // 2),),
    }
    assert plan(state, liveness("ab", loads=loads)) == ()


@pytest.mark.parametrize("priority", [-1, 0, 1])
@pytest.mark.parametrize("least", [0, 1])
def test_the_extra_one_gives_way_to_anything_else(priority: int, least: int) -> None:
    """Busy or not, before anything idle that is somebody's only one."""
    state = deployed(spread(6), deployment("other", 6, replicas_min=0))
    state = running(
        state,
        replica("chat#1.2", "b", claim_gib=6),
        replica("other#1.1", "c", claim_gib=6),
    )
    state = deployed(state, deployment("new", 6, replicas_min=least, priority=priority))
    loads = {
        "a": (load("chat#1.1", busy=0.9, slots_busy=2),),
        "b": (load("chat#1.2", busy=0.9, slots_busy=2),),
        "c": (load("other#1.1", idle_ms=TTL_MS // 2),),
    }
    told = liveness("abc", loads=loads, demand={"a": (Demand("new", 1),)})
    _, bodies = settle(state, told)
    (body,) = bodies
    assert body in (Drain("chat#1.1"), Drain("chat#1.2"))


def test_what_has_to_move_does_not_make_its_successor_an_extra_one() -> None:
    """Both move from a to b, where there is room for one: the important one stays."""
    state = deployed(
        cluster({node: (device(gib=size),) for node, size in (("a", 16), ("b", 8))}),
        deployment("less", 6),
        deployment("more", 6, priority=1),
    )
    state = running(
        state, replica("less#1.1", "a", claim_gib=6), replica("more#1.1", "a", claim_gib=6)
    )
    _, bodies = settle(run(state, SetDraining("a", True)), liveness("ab"))
    assert [body.deployment for body in bodies if isinstance(body, Place)] == ["more"]


def test_the_busiest_is_asked_first() -> None:
    """One free place: the deployment with the most to do gets it, priority before all."""
    nodes = {node: (device(),) for node in "ab"}
    for priorities, winner in (((0, 0), "hot"), ((1, 0), "warm")):
        state = deployed(
            cluster(nodes),
            deployment("warm", 4, replicas_max=2, priority=priorities[0]),
            deployment("hot", 4, replicas_max=2, priority=priorities[1]),
            deployment("wall", 4),
        )
        state = running(
            state, replica("warm#1.1", "a"), replica("hot#1.1", "a"), replica("wall#1.1", "b")
        )
        loads = {"a": (load("warm#1.1", busy=0.6), load("hot#1.1", busy=0.9))}
        _, bodies = settle(state, liveness("ab", loads=loads))
        assert [body.deployment for body in bodies if isinstance(body, Place)] == [winner]


busy_loads = st.builds(
    dict,
    queued_ms=st.sampled_from([0, QUEUED_MS]),
    busy=st.sampled_from([0.0, SPARE_BUSY, 1.0]),
    idle_ms=st.sampled_from([0, 10_000, TTL_MS]),
)
rows = st.lists(
    st.tuples(st.integers(1, 12), st.integers(0, 2), st.integers(0, 2), st.integers(-1, 1)),
    min_size=1,
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(2, 16), min_size=1, max_size=3), rows, st.data())
def test_every_plan_is_a_fixpoint_within_minimum_and_maximum(
    sizes: list[int], wishes: list[tuple[int, int, int, int]], data: st.DataObject
) -> None:
    nodes = "abc"[: len(sizes)]
    state = deployed(
        cluster({n: (device(gib=size),) for n, size in zip(nodes, sizes, strict=True)}),
        *(
            deployment(
                f"d{i}", gib, replicas_min=least, replicas_max=max(1, least + more), priority=prio
            )
            for i, (gib, least, more, prio) in enumerate(wishes)
        ),
    )
    names = st.lists(st.sampled_from(sorted(state.deployments)), unique=True, max_size=2)
    for _ in range(4):
        loads: dict[str, tuple[ReplicaLoad, ...]] = {
            node: tuple(
                load(entry.replica, **data.draw(busy_loads, entry.replica))
                for entry in state.replicas_on(node)
            )
            for node in nodes
        }
        asked = tuple(Demand(name, 1) for name in data.draw(names, "asked for"))
        told = liveness(nodes, loads=loads, demand={"a": asked})
        before, usage = state, ReplicaUsage(state, told)
        state, bodies = settle(state, told)
        assert violations(state) == ()
        for owner in state.deployments.values():
            placed = [r for r in state.replicas_of(owner.name) if not r.drain]
            was = [r for r in before.replicas_of(owner.name) if r.status is Status.READY]
            assert len(placed) <= max(owner.replicas_max, len(was))
            new = [b for b in bodies if isinstance(b, Place) and b.deployment == owner.name]
            if len(new) and len(placed) > max(owner.replicas_min, 1):
                assert len(placed) <= len(was) + 1, "one at a time"
            assert usage.waiting(owner.name) or not (new and not was and not owner.replicas_min)
        state = obey(state)
