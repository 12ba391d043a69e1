"""What would become of a wish: planned to its end, with nothing changed."""

from __future__ import annotations

from dataclasses import replace

from fixtures.cluster_state import (
    DIGEST,
    GIB,
    cluster,
    deployed,
    deployment,
    device,
    liveness,
    replica,
    running,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from aivailable.core.planning.forecast import forecast, steps, stranded, usable
from aivailable.core.planning.planner import plan
from aivailable.core.state.commands import PutDeployment, RemoveDeployment, SetDraining
from aivailable.core.state.invariants import violations
from aivailable.core.state.records import Backend
from aivailable.core.state.state import State
from aivailable.wire.peer import DeviceLoad


def pair(left_gib: float = 8.0, right_gib: float = 8.0) -> State:
    """chat (4 GiB) runs on a; b is empty; both have the file."""
    state = cluster({"a": (device(gib=left_gib),), "b": (device(gib=right_gib),)})
    state = replace(state, copies={DIGEST: ("a", "b")}, last_generation=1)
    state = deployed(state, deployment())
    return running(state, replica("chat#1.1", "a"))


def actions(state: State, wish: object) -> list[tuple[str, str, str]]:
    end = forecast(state, liveness("ab"), wish)  # type: ignore[arg-type]
    assert end.outcome.accepted, end.outcome
    return [(step.action, step.deployment, step.node) for step in steps(state, end)]


def test_a_drain_is_followed_to_its_end() -> None:
    assert actions(pair(), SetDraining("a", True)) == [
        ("drain", "chat", "a"),
        ("place", "chat", "b"),
    ]


def test_a_new_deployment_shows_what_stays_and_what_comes() -> None:
    wish = PutDeployment(deployment("more", 6))
    assert actions(pair(), wish) == [("keep", "chat", "a"), ("place", "more", "b")]


def test_what_would_not_fit_is_said_with_its_bytes() -> None:
    state = pair()
    end = forecast(state, liveness("ab"), PutDeployment(deployment("huge", 20)))
    (last,) = [step for step in steps(state, end) if step.action == "lack"]
    assert last.deployment == "huge"
    assert "needs 20.0 GiB, 8.0 GiB free" in last.reason


def test_a_change_that_needs_the_room_of_the_old_is_followed_through_the_wait() -> None:
    state = pair(left_gib=6, right_gib=3)
    wish = PutDeployment(deployment(gib=5), 1)
    assert actions(state, wish) == [("drain", "chat", "a"), ("place", "chat", "a")]


def test_a_removed_deployment_frees_what_a_waiting_one_needs() -> None:
    state = deployed(pair(8, 1), deployment("next", 6))
    assert actions(state, RemoveDeployment("chat")) == [
        ("drain", "chat", "a"),
        ("place", "next", "a"),
    ]


def test_live_bytes_follow_on_a_real_gpu() -> None:
    """What the leaving one really holds comes back, what other programs hold does not."""
    gpu = device(gib=8, backend=Backend.CUDA)
    state = deployed(replace(cluster({"a": (gpu,)}), last_generation=1), deployment())
    state = running(state, replica("chat#1.1", "a", used_bytes={"gpu0": 4 * GIB}))
    heard = liveness("a", devices={"a": (DeviceLoad("gpu0", 2 * GIB, 2 * GIB),)})
    fits = forecast(state, heard, PutDeployment(deployment(gib=5.5), 1))
    assert [r.claims[0].claim_bytes for r in fits.after.replicas.values()] == [int(5.5 * GIB)]
    more = forecast(state, heard, PutDeployment(deployment(gib=6), 1))
    assert "chat" in more.notes


def test_a_refused_wish_changes_nothing_and_says_why() -> None:
    state = pair()
    end = forecast(state, liveness("ab"), PutDeployment(deployment(), 0))
    assert not end.outcome.accepted
    assert end.after.deployments == state.deployments


def test_who_is_stranded_by_a_drain() -> None:
    assert stranded(pair(), liveness("ab"), "a") == ()
    assert stranded(pair(right_gib=3), liveness("ab"), "a") == ("chat",)
    assert stranded(pair(right_gib=3), liveness("ab"), "b") == ()
    assert stranded(pair(), liveness("a"), "a") == ("chat",), "nobody hears b"


def test_who_is_usable() -> None:
    state = pair()
    assert usable(state, liveness("ab"), "b")
    assert not usable(state, liveness("a"), "b")
    assert not usable(state, liveness("ab"), "c")
    for change in ({"draining": True}, {"down": True}):
        gone = replace(state.members["b"], **change)
        assert not usable(replace(state, members={**state.members, "b": gone}), liveness("ab"), "b")


@settings(max_examples=40, deadline=None)
@given(
    rooms=st.lists(st.integers(1, 16), min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 10), min_size=1, max_size=4),
    drained=st.integers(0, 3),
)
def test_a_forecast_ends_sound_and_settled(
    rooms: list[int], sizes: list[int], drained: int
) -> None:
    nodes = "abcd"[: len(rooms)]
    state = cluster({node: (device(gib=room),) for node, room in zip(nodes, rooms, strict=True)})
    state = replace(state, copies={DIGEST: tuple(nodes)})
    for number, size in enumerate(sizes):
        end = forecast(state, liveness(nodes), PutDeployment(deployment(f"m{number}", size)))
        state = end.after
        assert violations(state) == ()
        assert plan(state, end.liveness) == ()
    wish = SetDraining(nodes[drained % len(nodes)], True)
    end = forecast(state, liveness(nodes), wish)
    assert violations(end.after) == ()
    assert plan(end.after, end.liveness) == ()
