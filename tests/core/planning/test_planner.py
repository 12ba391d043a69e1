"""The plan: every answer goes through the real `apply` and leaves nothing to do."""

from __future__ import annotations

from dataclasses import replace

from fixtures.cluster_state import (
    DIGEST,
    GIB,
    LORA,
    STYLED,
    cluster,
    deployed,
    deployment,
    device,
    liveness,
    member,
    replica,
    report,
    run,
    running,
    settle,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from aivailable.core.planning.planner import SEAT_LAPSE_MS, copies_wanted, explanations, plan
from aivailable.core.state.commands import (
    CloseWindow,
    Drain,
    Lapse,
    MarkDown,
    Place,
    PutDeployment,
    RaiseFeatureLevel,
    RemoveDeployment,
    SetDraining,
    SetWindow,
)
from aivailable.core.state.invariants import violations
from aivailable.core.state.levels import LEVEL
from aivailable.core.state.records import (
    ApiKey,
    Backend,
    Deployment,
    Device,
    Inventory,
    Role,
    Scope,
    Status,
)
from aivailable.core.state.state import State
from aivailable.wire.peer import DeviceLoad

KEYS = {"a" * 8: ApiKey("a" * 8, "a" * 64, Scope.ADMIN, "")}
TO_READY = (Status.LOADING, Status.READY)


def three_nodes(gib: float = 8.0) -> State:
    return cluster({node: (device(gib=gib),) for node in "abc"})


def put(state: State, wanted: Deployment) -> State:
    current = state.deployments.get(wanted.name)
    return run(state, PutDeployment(wanted, current.generation if current is not None else 0))


def kinds(bodies: tuple[object, ...]) -> list[str]:
    return [type(body).__name__ for body in bodies]


def test_an_unfounded_or_idle_cluster_needs_nothing() -> None:
    assert plan(State(), liveness("a"), window_expired=True) == ()
    assert plan(three_nodes(), liveness("abc")) == ()


def test_places_what_is_missing_by_priority_then_size_then_name() -> None:
    state = deployed(
        three_nodes(24),
        deployment("small", 1),
        deployment("big", 9),
        deployment("also", 1),
        deployment("first", 1, priority=5),
    )
    state, bodies = settle(state, liveness("abc"))
    placed = [body.replica for body in bodies if isinstance(body, Place)]
    assert placed == ["first#1.1", "big#1.1", "also#1.1", "small#1.1"]
    assert violations(state) == ()


def test_numbers_go_on_where_they_stopped() -> None:
    state = replace(deployed(three_nodes(), deployment()), replica_numbers={"chat": 7})
    _, bodies = settle(state, liveness("abc"))
    assert [body.replica for body in bodies if isinstance(body, Place)] == ["chat#1.8"]


def test_a_lost_node_is_marked_and_its_replica_placed_elsewhere_at_once() -> None:
    state = deployed(three_nodes(), deployment())
    state = running(replace(state, copies={DIGEST: ("a", "c")}), replica("chat#1.1", "c"))
    heard = liveness("ab")
    state, bodies = settle(state, heard)
    assert bodies[0] == MarkDown("c", True)
    assert kinds(bodies) == ["MarkDown", "Place"]
    assert state.replicas["chat#1.2"].node == "a"
    state, bodies = settle(state, liveness("abc"))
    assert bodies == (MarkDown("c", False),)


def test_a_down_node_that_nobody_hears_stays_down_through_our_grace() -> None:
    state = three_nodes()
    lost = replace(state.members["c"], down=True)
    state = replace(state, members={**state.members, "c": lost})
    assert plan(state, replace(liveness("ab"), started_s=999.0)) == ()


def test_a_seat_lapses_when_its_node_never_came() -> None:
    state = three_nodes()
    ghost = replace(member("ghost", Role.OBSERVER), feature_max=LEVEL)
    members = {n: replace(m, feature_max=LEVEL) for n, m in state.members.items()}
    heard = liveness("abc")
    late = replace(heard, started_s=heard.now_s - SEAT_LAPSE_MS / 1000)
    soon = replace(late, started_s=late.started_s + 1)
    below = replace(state, members={**members, "ghost": ghost}, keys=KEYS)
    assert Lapse("ghost") not in plan(below, late)
    with_ghost = replace(below, feature_level=LEVEL)
    assert Lapse("ghost") in plan(with_ghost, late)
    assert Lapse("ghost") not in plan(with_ghost, soon)
    assert Lapse("ghost") not in plan(replace(with_ghost, keys={}), late), "the last admin key"
    came = {**state.inventories, "ghost": Inventory("ghost")}
    assert Lapse("ghost") not in plan(replace(with_ghost, inventories=came), late)
    state, _ = settle(with_ghost, late)
    assert "ghost" not in state.members


def test_removed_deployments_drain() -> None:
    state, _ = settle(deployed(three_nodes(), deployment()), liveness("abc"))
    state = run(state, RemoveDeployment("chat"))
    state, bodies = settle(state, liveness("abc"))
    assert bodies == (Drain("chat#1.1"),)


def test_a_name_deployed_again_replaces_the_old_file() -> None:
    state, _ = settle(put(three_nodes(), deployment()), liveness("abc"))
    state = run(state, RemoveDeployment("chat"))
    state = put(state, deployment(context=2048))
    assert state.deployments["chat"].generation > state.replicas["chat#1.1"].generation
    _, bodies = settle(state, liveness("abc"))
    assert [body.replica for body in bodies if isinstance(body, Place)] == ["chat#2.1"]


def test_a_change_places_the_new_before_the_old_goes() -> None:
    heard = liveness("abc")
    state, _ = settle(put(three_nodes(), deployment()), heard)
    state = report(state, "chat#1.1", *TO_READY)
    state, bodies = settle(put(state, deployment(context=2048)), heard)
    assert kinds(bodies) == ["Place"]
    state, bodies = settle(report(state, "chat#2.2", *TO_READY), heard)
    assert bodies == (Drain("chat#1.1"),)


def test_a_change_that_does_not_fit_beside_the_old_drains_it_first() -> None:
    heard = liveness("a", devices={"a": (DeviceLoad("gpu0", 3 * GIB),)})
    state = cluster({"a": (device(gib=8, backend=Backend.CUDA),)})
    state, _ = settle(put(state, deployment(gib=5)), liveness("a"))
    state = report(state, "chat#1.1", *TO_READY)
    state, bodies = settle(put(state, deployment(gib=6)), heard)
    assert bodies == (Drain("chat#1.1"),)
    assert explanations(state, heard)["chat"] == "waits for room: chat#1.1 must go first"
    state = report(state, "chat#1.1", Status.GONE)
    _, bodies = settle(state, liveness("a"))
    assert kinds(bodies) == ["Place"]


def test_room_that_is_waited_for_is_not_given_to_others() -> None:
    heard = liveness("a")
    state, _ = settle(put(cluster({"a": (device(gib=8),)}), deployment(gib=6)), heard)
    state = report(state, "chat#1.1", *TO_READY)
    state, _ = settle(put(state, deployment(gib=8)), heard)
    state, bodies = settle(put(state, deployment("small", 1)), heard)
    assert bodies == ()
    assert "needs 1.0 GiB, 0 KiB free" in explanations(state, heard)["small"]


def test_what_a_later_deployment_drains_is_room_for_an_earlier_one() -> None:
    heard = liveness("a")
    state = cluster({"a": (device("gpu0", 18), device("gpu1", 24))})
    first = (deployment("small", 1), deployment("middle", 11), deployment("big", 30))
    state, _ = settle(deployed(state, *first), heard)
    for wanted in (deployment("middle", 12), deployment("big", 1)):
        state = put(state, wanted)
    _, bodies = settle(state, heard)
    assert Drain("big#1.1") in bodies


def test_a_change_that_fits_nowhere_leaves_the_old_serving() -> None:
    heard = liveness("abc")
    state, _ = settle(put(three_nodes(), deployment()), heard)
    state = report(state, "chat#1.1", *TO_READY)
    state, bodies = settle(put(state, deployment(gib=40)), heard)
    assert bodies == ()
    text = explanations(state, heard)["chat"]
    assert "needs 40.0 GiB, 8.0 GiB free" in text
    assert text.endswith("chat#1.1 goes on meanwhile")


def test_superfluous_replicas_go_those_that_serve_last() -> None:
    wanted = deployment(gib=1)
    state = running(
        deployed(three_nodes(), wanted),
        replica("chat#1.1", "a", Status.LOADING, 1.0),
        replica("chat#1.2", "b", Status.READY, 1.0),
    )
    _, bodies = settle(state, liveness("abc"))
    assert bodies == (Drain("chat#1.1"),)


def test_an_expired_window_closes_and_the_feature_level_rises() -> None:
    state = run(three_nodes(), SetWindow(60))
    closed = plan(state, liveness("abc"), window_expired=True)
    assert closed == (CloseWindow(state.window.serial),)
    assert plan(state, liveness("abc")) == ()
    newer = {key: replace(entry, feature_max=3) for key, entry in state.members.items()}
    assert plan(replace(state, members=newer), liveness("abc")) == (RaiseFeatureLevel(3),)
    newer["b"] = member("b")
    assert plan(replace(state, members=newer), liveness("abc")) == ()


def test_too_few_nodes_are_explained() -> None:
    state = deployed(cluster({"a": (device(),)}), deployment(gib=1, replicas_min=2))
    state, _ = settle(state, liveness("a"))
    text = explanations(state, liveness("a"))["chat"]
    assert text == "1 of 2 replicas placed: host-a: already has a replica of it"


def test_copies_go_to_hosts_first_and_count_the_down_and_the_coming() -> None:
    state = deployed(three_nodes(), deployment(copies=2))
    assert copies_wanted(state) == (("b", DIGEST),)
    without_gpu = {**state.inventories, "b": Inventory("b")}
    assert copies_wanted(replace(state, inventories=without_gpu)) == (("c", DIGEST),)
    assert copies_wanted(running(state, replica("chat#1.1", "c", Status.FETCHING))) == ()
    down = {**state.members, "b": replace(state.members["b"], down=True)}
    assert copies_wanted(replace(state, members=down)) == (("c", DIGEST),)
    assert copies_wanted(replace(state, members=down, copies={DIGEST: ("a", "b")})) == ()
    many = deployed(state, deployment(copies=9))
    assert copies_wanted(many) == (("b", DIGEST), ("c", DIGEST))


def test_a_companion_is_copied_to_where_its_model_is() -> None:
    state = deployed(three_nodes(), deployment(copies=2, **STYLED))
    state = replace(state, copies={DIGEST: ("a", "c"), LORA: ("a",)})
    assert copies_wanted(state) == (("c", LORA),)
    state = replace(state, copies={DIGEST: ("a",), LORA: ("a",)})
    assert copies_wanted(state) == (("b", DIGEST), ("b", LORA))
    loading = running(state, replica("chat#1.1", "c", Status.FETCHING))
    assert copies_wanted(loading) == ()


def test_nothing_is_placed_where_a_companion_cannot_come() -> None:
    state = deployed(three_nodes(), deployment(**STYLED))
    state = replace(state, copies={DIGEST: ("a", "b"), LORA: ("b",)})
    placed = plan(state, liveness("abc"))
    assert [body.node for body in placed if isinstance(body, Place)] == ["b"]
    assert not any(isinstance(body, Place) for body in plan(state, liveness("ac")))
    text = explanations(state, liveness("ac"))["chat"]
    assert "lacks the file of lora=style.gguf, and no live node has it (held by: host-b)" in text


machines = st.lists(st.lists(st.integers(1, 24), max_size=2), min_size=1, max_size=4).map(
    lambda rows: {
        "abcd"[i]: tuple(device(f"gpu{j}", g) for j, g in enumerate(row))
        for i, row in enumerate(rows)
    }
)
wishes = st.lists(
    st.tuples(st.integers(1, 30), st.integers(1, 3), st.integers(0, 2)), min_size=1, max_size=5
)


def wished(rows: list[tuple[int, int, int]]) -> tuple[Deployment, ...]:
    return tuple(
        deployment(f"d{i}", gib, replicas_min=count, replicas_max=count, priority=priority)
        for i, (gib, count, priority) in enumerate(rows)
    )


@settings(max_examples=100, deadline=None)
@given(machines, wishes, wishes, st.data())
def test_every_plan_is_accepted_sound_and_a_fixpoint(
    nodes: dict[str, tuple[Device, ...]],
    before: list[tuple[int, int, int]],
    after: list[tuple[int, int, int]],
    data: st.DataObject,
) -> None:
    state, _ = settle(deployed(cluster(nodes), *wished(before)), liveness(nodes))
    for name in sorted(state.replicas):
        if data.draw(st.booleans(), f"{name} becomes ready"):
            state = report(state, name, *TO_READY)
    for wanted in wished(after):
        state = put(state, wanted)
    if data.draw(st.booleans(), "the last node drains"):
        state = run(state, SetDraining(max(nodes), True))
    heard = liveness(sorted(nodes)[: data.draw(st.integers(1, len(nodes)), "nodes heard")])
    state, _ = settle(state, heard)
    assert violations(state) == ()
    for name in sorted(explanations(state, heard)):
        assert explanations(state, heard)[name]


@settings(max_examples=60, deadline=None)
@given(machines, wishes)
def test_replacement_converges_when_agents_obey(
    nodes: dict[str, tuple[Device, ...]], rows: list[tuple[int, int, int]]
) -> None:
    heard = liveness(nodes)
    state, _ = settle(deployed(cluster(nodes), *wished(rows)), heard)
    for wanted in wished(rows):
        state = put(state, replace(wanted, context=2048))
    for _ in range(30):
        state, bodies = settle(state, heard)
        for name in sorted(state.replicas):
            if state.replicas[name].drain:
                state = report(state, name, Status.GONE)
            elif state.replicas[name].status is Status.PLACED:
                state = report(state, name, *TO_READY)
        if not bodies:
            break
    else:
        raise AssertionError("the plan goes on for ever")
    for entry in state.replicas.values():
        placed = [r for r in state.replicas_of(entry.deployment) if r.generation == 2]
        missing = len(placed) < state.deployments[entry.deployment].replicas_min
        assert entry.generation == 2 or missing


@settings(max_examples=60, deadline=None)
@given(machines, wishes, st.integers(1, 40))
def test_an_unrelated_node_moves_nothing(
    nodes: dict[str, tuple[Device, ...]], rows: list[tuple[int, int, int]], gib: int
) -> None:
    state, _ = settle(deployed(cluster(nodes), *wished(rows)), liveness(nodes))
    before = dict(state.replicas)
    state = replace(
        state,
        members={**state.members, "z": member("z", Role.OBSERVER)},
        inventories={**state.inventories, "z": Inventory("z", (device(gib=gib),), ("llama",))},
    )
    after, bodies = settle(state, liveness([*nodes, "z"]))
    assert all(isinstance(body, Place) and body.node == "z" for body in bodies)
    assert {key: after.replicas[key] for key in before} == before
