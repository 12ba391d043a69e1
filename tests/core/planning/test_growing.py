"""Automatic context and slots: the largest for which there is room, fixed once placed, and never
at the cost of what else is planned."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fixtures.cluster_state import (
    GIB,
    cluster,
    deployment,
    device,
    liveness,
    obey,
    run,
    settle,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from aivailable.core.ids import CommandId
from aivailable.core.planning.capacity import CPU_SLOTS_MAX
from aivailable.core.planning.planner import plan
from aivailable.core.state.commands import Command, Place, PutDeployment
from aivailable.core.state.invariants import violations
from aivailable.core.state.machine import apply
from aivailable.core.state.records import Backend, Deployment, Device, Growth
from aivailable.core.state.state import State
from aivailable.wire.peer import DeviceLoad

MIB = 1 << 20


def growing(
    name: str = "chat", gib: float = 4.0, most: int = 32768, **changes: object
) -> Deployment:
    """1 MiB for each token more: 1 GiB for 1,024 of them."""
    growth = Growth(most, MIB - 4096, 4096)
    return replace(deployment(name, gib, context=4096), growth=growth, **changes)  # type: ignore[arg-type]


def slotted(gib: float = 4.0, most: int = 64, context_max: int = 4096) -> Deployment:
    """1 GiB for each slot more; 1 MiB for each token more, if the context is automatic, too."""
    growth = Growth(context_max, MIB - 4096, 4096, most, GIB - MIB, MIB)
    return replace(deployment("chat", gib, context=4096, slots=2), growth=growth)


def put(state: State, *wanted: Deployment) -> State:
    for one in wanted:
        state = run(state, PutDeployment(one))
    return state


def contexts(state: State) -> dict[str, int]:
    return {entry.deployment: entry.context for entry in state.replicas.values()}


@pytest.mark.parametrize(
    ("gib", "context", "claim"),
    [
        (8.0, 4096 + 4096, 8 * GIB),
        (4.3, 4096 + 256, 4 * GIB + 256 * MIB),
        (4.0, 4096, 4 * GIB),
        (40.0, 32768, 4 * GIB + 28672 * MIB),
    ],
)
def test_takes_what_fits_at_the_place_in_whole_steps(gib: float, context: int, claim: int) -> None:
    state, _ = settle(put(cluster({"a": (device(gib=gib),)}), growing()), liveness("a"))
    (replica,) = state.replicas.values()
    assert (replica.context, replica.claims[0].claim_bytes) == (context, claim)
    assert violations(state) == ()


@pytest.mark.parametrize(
    ("gib", "backend", "wanted", "grown"),
    [
        (7.5, Backend.SIM, slotted(), (4096, 5)),
        (4.9, Backend.SIM, slotted(), (4096, 2)),
        (90.0, Backend.SIM, slotted(), (4096, 64)),
        (90.0, Backend.SIM, slotted(most=16), (4096, 16)),
        (90.0, Backend.CPU, slotted(), (4096, CPU_SLOTS_MAX)),
        (7.0, Backend.SIM, slotted(context_max=8192), (7168, 2)),
        (8.9, Backend.SIM, slotted(context_max=8192), (8192, 2)),
        (10.5, Backend.SIM, slotted(context_max=8192), (8192, 4)),
    ],
)
def test_slots_take_what_the_whole_context_leaves(
    gib: float, backend: Backend, wanted: Deployment, grown: tuple[int, int]
) -> None:
    state = put(cluster({"a": (device(gib=gib, backend=backend),)}), wanted)
    state, _ = settle(state, liveness("a"))
    (replica,) = state.replicas.values()
    assert (replica.context, replica.slots) == grown
    assert replica.claims[0].claim_bytes == wanted.grown(*grown).need_bytes <= gib * GIB
    assert violations(state) == ()


def test_slots_that_were_not_left_to_the_place_are_refused() -> None:
    for wanted, context, slots in (
        (slotted(most=4), 4096, 5),
        (slotted(most=4), 4096, 1),
        (slotted(most=4, context_max=8192), 4096, 3),
        (deployment("fixed", 1, slots=2), 0, 3),
    ):
        state = put(cluster({"a": (device(),)}), wanted)
        (body,) = plan(state, liveness("a"))
        assert isinstance(body, Place)
        wrong = replace(body, context=context, slots=slots)
        _, outcome = apply(state, Command(CommandId("a", 99), wrong, "t", control=state.control))
        assert (outcome.accepted, outcome.code) == (False, "invalid_slots")


def test_other_programs_and_the_margin_count() -> None:
    state = put(cluster({"a": (device(gib=24, backend=Backend.CUDA),)}), growing())
    busy = liveness("a", devices={"a": (DeviceLoad("gpu0", 6 * GIB),)})
    state, _ = settle(state, busy)
    assert contexts(state) == {"chat": 4096 + 1792}


def test_grows_over_two_devices_by_the_room_of_each() -> None:
    state = cluster({"a": (device("gpu0", 4), device("gpu1", 8))})
    state, _ = settle(put(state, growing(gib=9)), liveness("a"))
    (replica,) = state.replicas.values()
    assert replica.context > 4096
    claimed = {claim.device_id: claim.claim_bytes for claim in replica.claims}
    assert 3.9 * GIB < claimed["gpu0"] <= 4 * GIB
    assert 7.7 * GIB < claimed["gpu1"] <= 8 * GIB


def test_only_what_nobody_else_needs_and_never_again_once_placed() -> None:
    state = cluster({"a": (device(gib=8),)})
    state, _ = settle(put(state, growing(gib=3), deployment("other", 2)), liveness("a"))
    assert contexts(state) == {"chat": 4096 + 3072, "other": 4096}
    (other,) = state.replicas_of("other")
    state = obey(state)
    gone = {key: entry for key, entry in state.replicas.items() if entry.deployment != "other"}
    alone = replace(
        state,
        replicas=gone,
        deployments={k: d for k, d in state.deployments.items() if k != "other"},
    )
    assert other.replica not in alone.replicas
    assert plan(alone, liveness("a")) == ()


def test_a_context_that_was_not_left_to_the_place_is_refused() -> None:
    state = put(cluster({"a": (device(),)}), growing(most=8192), deployment("fixed", 1))
    for name, context in (("chat", 8193), ("chat", 4095), ("fixed", 4097)):
        (body,) = (
            entry
            for entry in plan(state, liveness("a"))
            if isinstance(entry, Place) and entry.deployment == name
        )
        wrong = Command(
            CommandId("a", 99), replace(body, context=context), "t", control=state.control
        )
        _, outcome = apply(state, wrong)
        assert (outcome.accepted, outcome.code) == (False, "invalid_context")


def test_a_growth_that_leads_nowhere_or_too_far_is_refused() -> None:
    state = cluster({"a": (device(),)})
    for growth in (
        Growth(4096, 1, 1),
        Growth(8192, -1, 1),
        Growth(8192, 1 << 60, 1),
        Growth(4096, 0, 0, 4, 1, 1),
        Growth(4096, 0, 0, 257, 1, 1),
        Growth(4096, 0, 0, 8, 1, -1),
        Growth(4096, 0, 0, 8, 1 << 60, 1),
    ):
        body = PutDeployment(replace(growing(), growth=growth))
        _, outcome = apply(state, Command(CommandId("a", 1), body, "t"))
        assert (outcome.accepted, outcome.code) == (False, "invalid_context")


machines = st.lists(st.lists(st.integers(2, 24), max_size=3), min_size=1, max_size=3).map(
    lambda rows: {
        "abc"[i]: tuple(device(f"gpu{j}", gib) for j, gib in enumerate(row))
        for i, row in enumerate(rows)
    }
)
wishes = st.lists(
    st.tuples(
        st.integers(1, 20),
        st.integers(1, 2),
        st.integers(0, 1),
        st.integers(0, 4000),
        st.integers(0, 12),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(machines, wishes)
def test_growing_takes_no_place_from_anybody(
    nodes: dict[str, tuple[Device, ...]], wanted: list[tuple[int, int, int, int, int, bool]]
) -> None:
    """Sound, a fixpoint (`settle`), within bounds, and the same places as without it."""
    plain = grown = cluster(nodes)
    for number, (gib, count, priority, token, further, fixed) in enumerate(wanted):
        one = deployment(
            f"d{number}", gib, replicas_min=count, replicas_max=count, priority=priority
        )
        longest = one.context + (0 if fixed and further else 10_000)
        growth = Growth(longest, token * 1000, token, 4 + further, token << 18, token << 10)
        auto = replace(one, growth=growth)
        plain = run(plain, PutDeployment(one))
        grown = run(grown, PutDeployment(auto))
    plain, _ = settle(plain, liveness(nodes))
    grown, _ = settle(grown, liveness(nodes))
    assert violations(grown) == ()
    assert [(r.deployment, r.node) for r in plain.replicas.values()] == [
        (r.deployment, r.node) for r in grown.replicas.values()
    ]
    for entry in grown.replicas.values():
        owner = grown.deployments[entry.deployment]
        assert owner.context <= entry.context <= owner.context_most
        assert owner.slots <= entry.slots <= owner.slots_most
        assert entry.slots == owner.slots or entry.context == owner.context_most
        need = owner.grown(entry.context, entry.slots)
        parts = len(entry.claims)
        total = need.need_bytes + (parts - 1) * need.compute_bytes
        assert sum(claim.claim_bytes for claim in entry.claims) == total
