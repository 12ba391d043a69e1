"""On demand: loaded when asked for, unloaded when idle, and never what is in use."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fixtures.cluster_state import (
    GIB,
    TO_READY,
    cluster,
    deployed,
    deployment,
    device,
    liveness,
    load,
    obey,
    replica,
    report,
    run,
    running,
    settle,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from aivailable.core.cluster.liveness import Liveness
from aivailable.core.planning.idle_policy import (
    ASKED_MAX_MS,
    EVICT_IDLE_MS,
    IDLE_TTL_MIN_MS,
    ReplicaUsage,
)
from aivailable.core.planning.planner import explanations, plan
from aivailable.core.state.commands import Body, Drain, MarkDown, Place, SetDraining
from aivailable.core.state.invariants import violations
from aivailable.core.state.records import Deployment, Status
from aivailable.core.state.state import State
from aivailable.wire.peer import Demand, ReplicaLoad

TTL_MS = 600_000


def on_demand(name: str = "chat", gib: float = 4.0, most: int = 1, **changes: object) -> Deployment:
    return deployment(name, gib, replicas_min=0, replicas_max=most, **changes)


def one_node(*wanted: Deployment, gib: float = 8.0) -> State:
    return deployed(cluster({"a": (device(gib=gib),)}), *wanted)


def asking(*names: str, waiting: int = 1, asked_ms: int = 0) -> dict[str, tuple[Demand, ...]]:
    return {"a": tuple(Demand(name, waiting, asked_ms) for name in names)}


def heard(*loads: ReplicaLoad, nodes: str = "a", **more: object) -> Liveness:
    return liveness(nodes, loads={"a": loads}, **more)  # type: ignore[arg-type]


def kinds(bodies: tuple[Body, ...]) -> list[str]:
    return [type(body).__name__ for body in bodies]


def test_nothing_is_loaded_before_it_is_asked_for() -> None:
    state = one_node(on_demand())
    assert plan(state, heard()) == ()
    assert explanations(state, heard()) == {}
    state, bodies = settle(state, heard(demand=asking("chat")))
    assert kinds(bodies) == ["Place"]


@pytest.mark.parametrize(
    ("asked_ms", "places"), [(0, True), (ASKED_MAX_MS - 1000, True), (ASKED_MAX_MS, False)]
)
def test_the_load_outlives_its_client_for_a_while(asked_ms: int, places: bool) -> None:
    demand = asking("chat", waiting=0, asked_ms=asked_ms)
    _, bodies = settle(one_node(on_demand()), heard(demand=demand))
    assert kinds(bodies) == ["Place"] * places


def test_who_is_not_heard_asks_for_nothing() -> None:
    state = deployed(cluster(dict.fromkeys("ab", (device(),))), on_demand())
    told = liveness("ab", demand={"b": (Demand("chat", 1),)})
    old = {**told.heard, "b": replace(told.heard["b"], at_s=900.0)}
    bodies = plan(state, replace(told, heard=old))
    assert bodies == (MarkDown("b", True),)


@pytest.mark.parametrize(("idle_ms", "drains"), [(0, False), (TTL_MS - 1, False), (TTL_MS, True)])
def test_goes_when_its_time_is_over_and_not_before(idle_ms: int, drains: bool) -> None:
    state = running(one_node(on_demand()), replica("chat#1.1", "a"))
    _, bodies = settle(state, heard(load("chat#1.1", idle_ms=idle_ms)))
    assert kinds(bodies) == ["Drain"] * drains


@pytest.mark.parametrize(
    "busy",
    [
        load("chat#1.1", idle_ms=0),
        load("chat#1.1", idle_ms=TTL_MS, slots_busy=1),
        load("chat#1.1", idle_ms=TTL_MS, waiting=1),
        load("chat#1.1", "loading", idle_ms=TTL_MS),
        load("other#1.1", idle_ms=TTL_MS),
    ],
)
def test_what_works_starts_or_is_unknown_is_not_idle(busy: ReplicaLoad) -> None:
    state = running(one_node(on_demand(), on_demand("wish", 8.0)), replica("chat#1.1", "a"))
    _, bodies = settle(state, heard(busy, demand=asking("wish")))
    assert bodies == ()
    assert "needs 8.0 GiB" in explanations(state, heard(busy, demand=asking("wish")))["wish"]


def test_a_deployments_own_ttl_wins_and_pinned_ones_stay() -> None:
    idle = heard(load("chat#1.1", idle_ms=30_000))
    for changes, drains in (
        ({"idle_ttl_s": 20}, True),
        ({"idle_ttl_s": 60}, False),
        ({"idle_ttl_s": 20, "pin": True}, False),
        ({"idle_ttl_s": 0}, True),
    ):
        state = running(one_node(on_demand(**changes)), replica("chat#1.1", "a"))
        _, bodies = settle(state, idle)
        assert kinds(bodies) == ["Drain"] * drains, changes
    state = running(one_node(on_demand(idle_ttl_s=0)), replica("chat#1.1", "a"))
    assert plan(state, heard(load("chat#1.1", idle_ms=IDLE_TTL_MIN_MS - 1000))) == ()


def test_above_its_minimum_a_deployment_shrinks_to_it() -> None:
    nodes = cluster({node: (device(),) for node in "abc"})
    state = deployed(nodes, deployment(replicas_min=1, replicas_max=3))
    state = running(state, *(replica(f"chat#1.{n}", node) for n, node in enumerate("abc", 1)))
    ages = {"a": TTL_MS, "b": TTL_MS + 5, "c": 1000}
    loads = {node: (load(f"chat#1.{n}", idle_ms=ages[node]),) for n, node in enumerate("abc", 1)}
    _, bodies = settle(state, liveness("abc", loads=loads))
    assert bodies == (Drain("chat#1.2"), Drain("chat#1.1"))


def test_the_idle_one_gives_way_to_what_is_asked_for() -> None:
    state = running(
        one_node(on_demand("old", 6), on_demand("new", 6)), replica("old#1.1", "a", claim_gib=6)
    )
    idle = load("old#1.1", idle_ms=EVICT_IDLE_MS)
    state, bodies = settle(state, heard(idle, demand=asking("new")))
    assert bodies == (Drain("old#1.1"),)
    assert "old#1.1 must go first" in explanations(state, heard(idle, demand=asking("new")))["new"]
    state = report(state, "old#1.1", Status.GONE)
    state, bodies = settle(state, heard(demand=asking("new")))
    assert kinds(bodies) == ["Place"], "and the old one does not come back by itself"


@pytest.mark.parametrize(
    ("changes", "idle_ms"),
    [
        ({}, EVICT_IDLE_MS - 600),
        ({"pin": True}, TTL_MS),
        ({"priority": 1}, EVICT_IDLE_MS),
        ({"replicas_min": 1}, TTL_MS),
    ],
)
def test_what_is_not_evicted(changes: dict[str, object], idle_ms: int) -> None:
    held = on_demand("old", 6, **changes) if "replicas_min" not in changes else deployment("old", 6)
    state = running(one_node(held, on_demand("new", 6)), replica("old#1.1", "a", claim_gib=6))
    told = heard(load("old#1.1", idle_ms=idle_ms), demand=asking("new"))
    _, bodies = settle(state, told)
    assert bodies == ()


def test_of_several_the_longest_idle_of_the_lowest_priority_goes() -> None:
    state = one_node(
        on_demand("low", 2, priority=-1),
        on_demand("long", 2),
        on_demand("short", 2),
        on_demand("new", 2),
        gib=6,
    )
    names = ("low#1.1", "long#1.1", "short#1.1")
    state = running(state, *(replica(name, "a", claim_gib=2) for name in names))
    ages = (10_000, 90_000, 20_000)
    loads = tuple(load(name, idle_ms=age) for name, age in zip(names, ages, strict=True))
    _, bodies = settle(state, heard(*loads, demand=asking("new")))
    assert bodies == (Drain("low#1.1"),)
    state = replace(state, deployments={**state.deployments, "low": on_demand("low", 2)})
    _, bodies = settle(state, heard(*loads, demand=asking("new")))
    assert bodies == (Drain("long#1.1"),)


def test_a_higher_priority_takes_an_idle_one_before_a_busy_one() -> None:
    state = one_node(
        on_demand("idle", 4, priority=1), deployment("busy", 4), on_demand("new", 4, priority=2)
    )
    state = running(state, replica("idle#1.1", "a"), replica("busy#1.1", "a"))
    told = heard(
        load("idle#1.1", idle_ms=60_000), load("busy#1.1", slots_busy=3), demand=asking("new")
    )
    _, bodies = settle(state, told)
    assert bodies == (Drain("idle#1.1"),)


def test_in_use_it_moves_away_from_a_draining_node_and_idle_it_just_goes() -> None:
    nodes = deployed(cluster({node: (device(),) for node in "ab"}), on_demand())
    for idle_ms, expected in ((0, ["Place"]), (TTL_MS, ["Drain"])):
        state = running(run(nodes, SetDraining("a", True)), replica("chat#1.1", "a"))
        state, bodies = settle(state, heard(load("chat#1.1", idle_ms=idle_ms), nodes="ab"))
        assert kinds(bodies) == expected


def test_a_new_controller_unloads_nothing_that_was_just_used() -> None:
    """It hears the same ages, and before it hears anything it knows of nothing idle."""
    state = deployed(cluster({node: (device(),) for node in "ab"}), on_demand())
    state = running(state, replica("chat#1.1", "b"))
    told = liveness("ab", loads={"b": (load("chat#1.1", idle_ms=TTL_MS - 10_000),)})
    for controller in "ab":
        assert plan(state, replace(told, here=controller)) == ()
    deaf = replace(told, heard={"a": told.heard["a"]}, now_s=told.now_s, started_s=told.now_s)
    assert plan(state, deaf) == ()


def test_the_sum_of_all_who_ask() -> None:
    state = deployed(cluster({node: (device(),) for node in "ab"}), on_demand())
    demand = {"a": (Demand("chat", 2, 0),), "b": (Demand("chat", 0, 7000), Demand("x", 1))}
    usage = ReplicaUsage(state, liveness("ab", demand=demand))
    assert (usage.waiting("chat"), usage.waiting("x"), usage.waiting("y")) == (2, 1, 0)
    assert usage.is_asked("chat")
    assert not usage.is_asked("y")


wishes = st.lists(
    st.tuples(
        st.integers(1, 12), st.integers(0, 1), st.integers(1, 2), st.integers(-1, 1), st.booleans()
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(2, 16), min_size=1, max_size=3), wishes, st.data())
def test_every_plan_is_a_fixpoint_and_takes_nothing_in_use_from_its_equals(
    sizes: list[int], rows: list[tuple[int, int, int, int, bool]], data: st.DataObject
) -> None:
    """Whatever is idle, asked for or unknown: a few rounds of it on one cluster."""
    nodes = "abc"[: len(sizes)]
    wanted = {
        f"d{i}": deployment(
            f"d{i}",
            gib,
            replicas_min=least,
            replicas_max=max(least, most),
            priority=priority,
            pin=pin,
            idle_ttl_s=60,
        )
        for i, (gib, least, most, priority, pin) in enumerate(rows)
    }
    machines = {node: (device(gib=size),) for node, size in zip(nodes, sizes, strict=True)}
    state = deployed(cluster(machines), *wanted.values())
    for _ in range(3):
        told = _told(state, nodes, sorted(wanted), data)
        usage = ReplicaUsage(state, told)
        before = state
        state, bodies = settle(state, told)
        assert violations(state) == ()
        highest = max(
            (
                entry.priority
                for entry in wanted.values()
                if entry.replicas_min or usage.is_asked(entry.name)
            ),
            default=-9,
        )
        for body in bodies:
            if isinstance(body, Place):
                owner = wanted[body.deployment]
                assert owner.replicas_min or usage.is_asked(owner.name)
            if isinstance(body, Drain):
                gone = before.replicas[body.replica]
                busy = usage.idle_ms(gone) == 0
                assert not busy or wanted[gone.deployment].priority < highest
        state = obey(state)


def _told(state: State, nodes: str, names: list[str], data: st.DataObject) -> Liveness:
    ages = st.sampled_from([0, 1000, 10_000, 100_000])
    loads = {
        node: tuple(
            load(entry.replica, idle_ms=data.draw(ages, entry.replica))
            for entry in state.replicas_on(node)
        )
        for node in nodes
    }
    asked = data.draw(st.lists(st.sampled_from(names), unique=True, max_size=3), "asked for")
    return liveness(nodes, loads=loads, demand={"a": tuple(Demand(name, 1) for name in asked)})


def test_claims_are_never_above_the_device() -> None:
    """The examples above would prove nothing on a device with room for all."""
    state = one_node(on_demand("old", 6), on_demand("new", 6))
    assert state.inventories["a"].devices[0].total_bytes < 12 * GIB
    state, _ = settle(state, heard(demand=asking("old", "new")))
    assert len(state.replicas) == 1
    state = report(state, next(iter(state.replicas)), *TO_READY)
    assert len(plan(state, heard(demand=asking("new", "old")))) == 0


def test_the_history_says_why_something_goes() -> None:
    idle = heard(load("old#1.1", idle_ms=TTL_MS))
    state = running(one_node(on_demand("old", 6)), replica("old#1.1", "a", claim_gib=6))
    after, _ = settle(state, idle)
    assert after.events[-1].text == "old#1.1 drains: idle for 600 s"
    state = deployed(state, on_demand("new", 6))
    after, _ = settle(state, heard(load("old#1.1", idle_ms=EVICT_IDLE_MS), demand=asking("new")))
    assert after.events[-1].text == "old#1.1 drains: makes room for new"
