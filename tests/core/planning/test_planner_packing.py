"""Packing and preemption: what gives way to what, that it suffices, and that nothing else moves."""

from __future__ import annotations

from dataclasses import replace

from fixtures.cluster_state import (
    cluster,
    deployed,
    deployment,
    device,
    liveness,
    obey,
    run,
    settle,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from aivailable.core.planning.planner import explanations
from aivailable.core.state.commands import Drain, PutDeployment, SetDraining
from aivailable.core.state.invariants import violations
from aivailable.core.state.records import Device
from aivailable.core.state.state import State

ROUNDS_MAX = 40


def ended(state: State, nodes: str | dict[str, tuple[Device, ...]]) -> State:
    """When plan and agents have nothing left to do."""
    for _ in range(ROUNDS_MAX):
        state, bodies = settle(state, liveness(nodes))
        assert violations(state) == ()
        if not bodies and obey(state) == state:
            return state
        state = obey(state)
    raise AssertionError("the plan goes on for ever")


def serving(state: State) -> dict[str, int]:
    return {name: len(state.replicas_of(name)) for name in sorted(state.deployments)}


def test_everybody_is_served_once_before_anybody_twice() -> None:
    twice = deployment("big", 6, replicas_min=2, replicas_max=2)
    state = deployed(cluster({"a": (device(),), "b": (device(),)}), twice, deployment("small", 3))
    assert serving(ended(state, "ab")) == {"big": 1, "small": 1}


def test_what_is_planned_moves_to_make_room() -> None:
    """The tightest fit for 5 is the 6, where alone 6 fits."""
    state = cluster({"a": (device("gpu0", 6),), "b": (device("gpu0", 9),)})
    wanted = (
        deployment("six", 6),
        deployment("five", 5, priority=1),
        deployment("four", 4, priority=1),
    )
    assert serving(ended(deployed(state, *wanted), "ab")) == {"five": 1, "four": 1, "six": 1}


def test_the_larger_is_placed_when_only_one_fits() -> None:
    state = cluster({"a": (device(gib=10),)})
    state = deployed(state, deployment("large", 8), deployment("small", 7))
    state = ended(state, "a")
    assert serving(state) == {"large": 1, "small": 0}
    assert "needs 7.0 GiB, 2.0 GiB free" in explanations(state, liveness("a"))["small"]


def test_the_important_take_room_from_the_least_that_suffices() -> None:
    state = cluster({"a": (device(gib=12),), "b": (device(gib=8),)})
    low = (
        deployment("mid", 7, priority=1),
        deployment("pinned", 5, pin=True),
        deployment("low", 6),
    )
    state = ended(deployed(state, *low), "ab")
    assert serving(state) == {"low": 1, "mid": 1, "pinned": 1}
    state = run(state, PutDeployment(deployment("first", 6, priority=5)))
    state, bodies = settle(state, liveness("ab"))
    drained = [body.replica for body in bodies if isinstance(body, Drain)]
    assert [name.partition("#")[0] for name in drained] == ["low"]
    waits = explanations(state, liveness("ab"))["first"]
    assert waits == f"waits for room: {drained[0]} must go first"
    state = ended(state, "ab")
    assert serving(state) == {"first": 1, "low": 0, "mid": 1, "pinned": 1}
    assert "GiB free" in explanations(state, liveness("ab"))["low"]


def test_nobody_gives_way_in_vain_nor_to_an_equal() -> None:
    state = ended(deployed(cluster({"a": (device(),)}), deployment("low", 6)), "a")
    for rival in (deployment("vast", 30, priority=9), deployment("equal", 7)):
        after, bodies = settle(run(state, PutDeployment(rival)), liveness("a"))
        assert bodies == ()
        assert "GiB free" in explanations(after, liveness("a"))[rival.name]


machines = st.lists(st.lists(st.integers(2, 24), max_size=3), min_size=1, max_size=4).map(
    lambda rows: {
        "abcd"[i]: tuple(device(f"gpu{j}", g) for j, g in enumerate(row))
        for i, row in enumerate(rows)
    }
)
wishes = st.lists(
    st.tuples(st.integers(1, 30), st.integers(1, 3), st.integers(0, 2), st.booleans()),
    min_size=1,
    max_size=4,
)


@settings(max_examples=40, deadline=None)
@given(machines, wishes, wishes, st.data())
def test_any_order_of_wishes_ends_sound_and_explained(
    nodes: dict[str, tuple[Device, ...]],
    before: list[tuple[int, int, int, bool]],
    after: list[tuple[int, int, int, bool]],
    data: st.DataObject,
) -> None:
    state = cluster(nodes)
    pinned: set[str] = set()
    for number, (gib, count, priority, pin) in enumerate((*before, *after)):
        name = f"d{number}"
        wanted = deployment(
            name, gib, replicas_min=count, replicas_max=count, priority=priority, pin=pin
        )
        state, bodies = settle(run(state, PutDeployment(wanted)), liveness(nodes))
        assert violations(state) == ()
        given_way = {body.replica.partition("#")[0] for body in bodies if isinstance(body, Drain)}
        assert not given_way & pinned
        highest = max(entry.priority for entry in state.deployments.values())
        assert all(state.deployments[other].priority < highest for other in given_way)
        if pin:
            pinned.add(name)
        if data.draw(st.booleans(), "the agents act"):
            state = obey(state)
    if data.draw(st.booleans(), "the first node drains"):
        state = run(state, SetDraining("a", True))
    state = ended(state, nodes)
    heard = liveness(nodes)
    notes = explanations(state, heard)
    for name, wanted in state.deployments.items():
        lacking = len(state.replicas_of(name)) < wanted.replicas_min
        assert not lacking or name in notes


def test_the_larger_model_gets_the_faster_of_about_equal_cards() -> None:
    slow, fast = replace(device("gpu0", 8), speed=10.0), replace(device("gpu1", 8.4), speed=40.0)
    vast = replace(device("gpu2", 80), speed=90.0)
    state = deployed(
        cluster({"a": (slow, fast, vast)}), deployment("small", 6), deployment("big", 7)
    )
    state = ended(state, "a")
    places = {entry.deployment: entry.claims[0].device_id for entry in state.replicas.values()}
    assert places == {"big": "gpu1", "small": "gpu0"}, "and the vast one waits for what needs it"
