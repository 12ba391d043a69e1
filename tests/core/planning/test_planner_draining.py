"""A draining node: nothing new comes, what runs there moves first, and stays when it cannot."""

from __future__ import annotations

from fixtures.cluster_state import (
    TO_READY,
    cluster,
    deployed,
    deployment,
    device,
    liveness,
    obey,
    replica,
    report,
    run,
    running,
    settle,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from aivailable.core.planning.placement import PlacementRefused, place
from aivailable.core.planning.planner import explanations
from aivailable.core.state.commands import Drain, Place, SetDraining
from aivailable.core.state.records import Device, Status
from aivailable.core.state.state import State

ROUNDS_MAX = 30


def ready(state: State, name: str) -> int:
    return sum(
        entry.status is Status.READY and not entry.drain for entry in state.replicas_of(name)
    )


def test_moves_first_and_drains_when_the_new_one_serves() -> None:
    heard = liveness("ab")
    state, _ = settle(
        deployed(cluster({"a": (device(),), "b": (device(),)}), deployment()), liveness("ab")
    )
    state = report(state, "chat#1.1", *TO_READY)
    state, bodies = settle(run(state, SetDraining("a", True)), heard)
    assert [body.node for body in bodies if isinstance(body, Place)] == ["b"]
    state, bodies = settle(report(state, "chat#1.2", *TO_READY), heard)
    assert bodies == (Drain("chat#1.1"),)


def test_stays_and_says_so_when_there_is_no_other_place() -> None:
    heard = liveness("ab")
    state = deployed(cluster({"a": (device(),), "b": (device(gib=2),)}), deployment())
    state = running(state, replica("chat#1.1", "a"))
    state, bodies = settle(run(state, SetDraining("a", True)), heard)
    assert bodies == ()
    text = explanations(state, heard)["chat"]
    assert "host-a: draining" in text
    assert "host-b gpu0: needs 4.0 GiB, 2.0 GiB free" in text
    assert text.endswith("chat#1.1 goes on meanwhile")
    assert settle(run(state, SetDraining("a", False)), heard)[1] == ()


def test_what_has_not_started_there_never_does() -> None:
    state = deployed(cluster({"a": (device(),)}), deployment())
    state = running(state, replica("chat#1.1", "a", Status.PLACED))
    _, bodies = settle(run(state, SetDraining("a", True)), liveness("a"))
    assert bodies == (Drain("chat#1.1"),)


def test_the_last_words_of_a_removed_deployment_need_no_other_place() -> None:
    state = running(cluster({"a": (device(),)}), replica("chat#1.1", "a"))
    _, bodies = settle(run(state, SetDraining("a", True)), liveness("a"))
    assert bodies == (Drain("chat#1.1"),)


def test_only_what_makes_room_goes_before_its_successor_comes() -> None:
    """An old replica on a draining node makes no room on the node of the new one."""
    state = cluster({"a": (device(),), "b": (device(),), "c": ()})
    state = running(
        deployed(state, deployment(gib=7, generation=2, replicas_min=2, replicas_max=2)),
        replica("chat#1.1", "a"),
        replica("chat#1.2", "b"),
    )
    _, bodies = settle(run(state, SetDraining("a", True)), liveness("abc"))
    assert bodies == (Drain("chat#1.2"),)


machines = st.lists(st.lists(st.integers(1, 24), max_size=2), min_size=2, max_size=4).map(
    lambda rows: {
        "abcd"[i]: tuple(device(f"gpu{j}", g) for j, g in enumerate(row))
        for i, row in enumerate(rows)
    }
)
wishes = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 3)), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(machines, wishes, st.data())
def test_draining_interrupts_nobody_and_leaves_only_what_fits_nowhere_else(
    nodes: dict[str, tuple[Device, ...]], rows: list[tuple[int, int]], data: st.DataObject
) -> None:
    wanted = tuple(
        deployment(f"d{i}", gib, replicas_min=count, replicas_max=count)
        for i, (gib, count) in enumerate(rows)
    )
    heard = liveness(nodes)
    state, _ = settle(deployed(cluster(nodes), *wanted), heard)
    state = obey(state)
    gone = data.draw(st.sets(st.sampled_from(sorted(nodes)), min_size=1), "draining")
    for node in sorted(gone):
        state = run(state, SetDraining(node, True))
    for _ in range(ROUNDS_MAX):
        served = {entry.name: ready(state, entry.name) for entry in wanted}
        state, bodies = settle(state, heard)
        assert not any(isinstance(body, Place) and body.node in gone for body in bodies)
        for entry in wanted:
            assert ready(state, entry.name) >= min(served[entry.name], entry.replicas_min)
        if not bodies:
            break
        state = obey(state)
    else:
        raise AssertionError("draining goes on for ever")
    notes = explanations(state, heard)
    for entry in state.replicas.values():
        if entry.node in gone:
            assert isinstance(
                place(state, heard, state.deployments[entry.deployment]), PlacementRefused
            )
            assert f"{entry.replica}" in notes[entry.deployment]
    staying = dict(state.replicas)
    for node in sorted(gone):
        state = run(state, SetDraining(node, False))
    state, bodies = settle(state, heard)
    assert not any(isinstance(body, Drain) for body in bodies)
    assert {key: state.replicas[key] for key in staying} == staying
