"""Placement: filter, score, split, explain; and the law that nothing is ever oversubscribed."""

from __future__ import annotations

from dataclasses import replace

import pytest
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

from aivailable.core.cluster.liveness import Liveness
from aivailable.core.planning.capacity import CapacityLedger
from aivailable.core.planning.placement import (
    Placed,
    PlacementRefused,
    explain,
    format_bytes,
    place,
)
from aivailable.core.state.records import Backend, Claim, Device, Failure, Status
from aivailable.core.state.state import State
from aivailable.wire.peer import DeviceLoad

CUDA = Backend.CUDA


def free_on_a(state: State, heard: Liveness) -> int:
    """What a plan may still put on the first device of node a."""
    return CapacityLedger(state, heard).hosts["a"].capacities[0].free_bytes


def placed_on(answer: Placed | PlacementRefused) -> tuple[str, tuple[str, ...]]:
    assert isinstance(answer, Placed), explain(answer)
    return answer.node, tuple(claim.device_id for claim in answer.claims)


def refusal(answer: Placed | PlacementRefused) -> str:
    assert isinstance(answer, PlacementRefused)
    return explain(answer)


def test_takes_the_tightest_fit_when_all_else_is_equal() -> None:
    state = replace(
        cluster({"a": (device(gib=24),), "b": (device(gib=6),), "c": (device(gib=11),)}),
        copies={DIGEST: ("a", "b", "c")},
    )
    assert placed_on(place(state, liveness("abc"), deployment(gib=5))) == ("b", ("gpu0",))


def test_fits_to_the_byte_on_one_device_and_over_two() -> None:
    wanted = deployment(gib=4)
    exact = replace(device(), total_bytes=wanted.need_bytes)
    short = replace(exact, total_bytes=wanted.need_bytes - 1)
    assert isinstance(place(cluster({"a": (exact,)}), liveness("a"), wanted), Placed)
    assert isinstance(place(cluster({"a": (short,)}), liveness("a"), wanted), PlacementRefused)
    shared = wanted.weights_bytes + wanted.kv_bytes
    half = replace(device(), total_bytes=shared // 2 + wanted.compute_bytes)
    other = replace(half, device_id="gpu1", total_bytes=wanted.need_bytes - shared // 2)
    assert isinstance(place(cluster({"a": (half, other)}), liveness("a"), wanted), Placed)
    other = replace(other, total_bytes=other.total_bytes - 1)
    assert isinstance(place(cluster({"a": (half, other)}), liveness("a"), wanted), PlacementRefused)


def test_prefers_the_node_that_holds_the_file_to_a_tighter_fit() -> None:
    state = cluster({"a": (device(gib=24),), "b": (device(gib=6),)})
    assert placed_on(place(state, liveness("ab"), deployment(gib=5)))[0] == "a"


def test_prefers_the_faster_of_equal_devices_and_then_the_first_name() -> None:
    slow, fast = replace(device("gpu0"), speed=10.0), replace(device("gpu1"), speed=20.0)
    state = cluster({"a": (slow, fast)})
    assert placed_on(place(state, liveness("a"), deployment())) == ("a", ("gpu1",))
    state = cluster({"a": (slow, replace(fast, speed=10.0))})
    assert placed_on(place(state, liveness("a"), deployment())) == ("a", ("gpu0",))


def test_a_gpu_comes_before_a_tighter_cpu() -> None:
    state = cluster({"a": (device("cpu0", 5, Backend.CPU), device("gpu0", 24, CUDA))})
    assert placed_on(place(state, liveness("a"), deployment(gib=4))) == ("a", ("gpu0",))


def test_splits_over_devices_of_one_node_only_when_one_is_not_enough() -> None:
    state = cluster({"a": (device("gpu0", 4), device("gpu1", 8)), "b": (device("gpu0", 8),)})
    assert placed_on(place(state, liveness("ab"), deployment(gib=7))) == ("a", ("gpu1",))
    wanted = deployment(gib=10)
    answer = place(state, liveness("ab"), wanted)
    assert placed_on(answer) == ("a", ("gpu1", "gpu0"))
    assert isinstance(answer, Placed)
    big, small = (claim.claim_bytes for claim in answer.claims)
    assert big + small == wanted.need_bytes + wanted.compute_bytes
    assert big <= 8 * GIB
    assert small <= 4 * GIB
    assert 1.8 < big / small < 2.2


def test_never_splits_over_two_backends() -> None:
    state = cluster({"a": (device("gpu0", 6, CUDA), device("gpu1", 6, Backend.VULKAN))})
    assert "gpu0: needs 9.0 GiB, 5.8 GiB free" in refusal(
        place(state, liveness("a"), deployment(gib=9))
    )


def test_replicas_of_one_deployment_go_to_different_nodes() -> None:
    wanted = deployment(gib=2)
    state = running(cluster({"a": (device(),), "b": (device(),)}), replica("chat#1.1", "a"))
    assert placed_on(place(state, liveness("ab"), wanted))[0] == "b"
    state = running(state, replica("chat#1.2", "b"))
    assert "already has a replica" in refusal(place(state, liveness("ab"), wanted))


def test_real_gpus_keep_a_margin_and_yield_to_other_programs() -> None:
    gpu = device(gib=8, backend=CUDA)
    state = cluster({"a": (gpu,)})
    margin = state.settings.margin_bytes
    assert free_on_a(state, liveness("a")) == 8 * GIB - margin
    busy = liveness("a", devices={"a": (DeviceLoad("gpu0", 3 * GIB),)})
    assert free_on_a(state, busy) == 3 * GIB - margin
    ours = running(state, replica("chat#1.1", "a", claim_gib=2.0))
    assert free_on_a(ours, busy) == 3 * GIB - margin
    starting = running(state, replica("chat#1.1", "a", Status.LOADING, claim_gib=2.0))
    assert free_on_a(starting, busy) == 1 * GIB - margin


def test_eight_gib_with_five_of_ours_and_two_of_others_has_less_than_one_left() -> None:
    """The design's worked example: 1 GiB is free, and a quarter of that is the margin."""
    gpu = device(gib=8, backend=CUDA)
    state = running(cluster({"a": (gpu,)}), replica("chat#1.1", "a", claim_gib=5.0))
    live = liveness("a", devices={"a": (DeviceLoad("gpu0", 1 * GIB),)})
    left = 1 * GIB - state.settings.margin_bytes
    assert free_on_a(state, live) == left
    assert isinstance(place(state, live, deployment("small", 0.75)), Placed)
    said = refusal(place(state, live, deployment("other", 0.76)))
    assert "needs 778 MiB, 768 MiB free" in said


def test_a_simulated_device_is_worth_what_was_granted() -> None:
    state = cluster({"a": (device(gib=8),)})
    busy = liveness("a", devices={"a": (DeviceLoad("gpu0", 3 * GIB),)})
    assert free_on_a(state, busy) == 8 * GIB


@pytest.mark.parametrize(("down", "words"), [(True, "host-b: down"), (False, "host-b: draining")])
def test_a_node_that_is_down_or_draining_is_no_candidate(down: bool, words: str) -> None:
    state = cluster({"a": (), "b": (device(),)})
    away = replace(state.members["b"], down=down, draining=not down)
    state = replace(state, members={**state.members, "b": away})
    text = refusal(place(state, liveness("ab"), deployment()))
    assert words in text
    assert "host-a: has no usable device" in text


def test_explains_silence_engines_files_and_failures() -> None:
    state = cluster({"a": (device(),), "b": (device(),)})
    assert "host-b: not heard for" in refusal(place(state, liveness("a"), deployment(gib=9)))
    vllm = deployment(engine="vllm")
    assert "cannot run the engine 'vllm'" in refusal(place(state, liveness("ab"), vllm))
    orphan = replace(state, copies={DIGEST: ("z",)})
    assert "held by: nobody" in refusal(place(orphan, liveness("ab"), deployment()))
    failing = replace(
        state,
        failures={f"chat@{n}": Failure("chat", 1, n, 5, "out of memory") for n in ("a", "b")},
    )
    assert "5 times, last: out of memory" in refusal(place(failing, liveness("ab"), deployment()))
    assert placed_on(place(failing, liveness("ab"), deployment(generation=2)))[0] == "a"


def test_looks_elsewhere_after_a_failure() -> None:
    state = cluster({"a": (device(),), "b": (device(),)})
    failed = replace(state, failures={"chat@a": Failure("chat", 1, "a", 1, "crashed")})
    assert placed_on(place(failed, liveness("ab"), deployment()))[0] == "b"


def test_suggests_the_context_that_would_fit() -> None:
    wanted = replace(
        deployment(), weights_bytes=4 * GIB, kv_bytes=4 * GIB, compute_bytes=0, context=8192
    )
    text = refusal(place(cluster({"a": (device(gib=6),)}), liveness("a"), wanted))
    assert text == "host-a gpu0: needs 8.0 GiB, 6.0 GiB free; would fit with ctx 4096"
    assert "ctx" not in refusal(place(cluster({"a": (device(gib=4),)}), liveness("a"), wanted))


def test_leaving_replicas_count_as_gone_only_when_asked() -> None:
    state = running(cluster({"a": (device(gib=8, backend=CUDA),)}), replica("old#1.1", "a"))
    heard = liveness("a", devices={"a": (DeviceLoad("gpu0", 4 * GIB),)})
    wanted = deployment(gib=6)
    assert isinstance(place(state, heard, wanted), PlacementRefused)
    assert isinstance(place(state, heard, wanted, ("old#1.1",)), Placed)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 KiB"),
        (7, "7 bytes"),
        (300 << 20, "300 MiB"),
        (round(9.1 * GIB), "9.1 GiB"),
        (5000, "5 KiB"),
    ],
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text


devices = st.lists(
    st.tuples(st.integers(0, 24), st.sampled_from([CUDA, Backend.SIM, Backend.CPU])), max_size=3
).map(lambda rows: tuple(device(f"gpu{i}", gib, kind) for i, (gib, kind) in enumerate(rows)))


@settings(max_examples=100)
@given(
    st.lists(devices, min_size=1, max_size=4),
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
)
def test_never_oversubscribes_a_device(
    machines: list[tuple[Device, ...]], needs_gib: list[int]
) -> None:
    names = "abcd"[: len(machines)]
    state = cluster(dict(zip(names, machines, strict=True)))
    heard = liveness(names)
    for number, gib in enumerate(needs_gib):
        wanted = deployment(f"d{number}", gib / 2)
        state = deployed(state, wanted)
        answer = place(state, heard, wanted)
        assert answer == place(state, heard, wanted)
        if isinstance(answer, Placed):
            backends = {_device(state, answer.node, claim).backend for claim in answer.claims}
            assert len(backends) == 1
            fresh = replica(f"d{number}#1.1", answer.node, claims=answer.claims)
            state = running(state, fresh)
            for claim in answer.claims:
                total = _device(state, answer.node, claim).total_bytes
                assert 0 < state.claimed_bytes(answer.node, claim.device_id) <= total


@settings(max_examples=100)
@given(st.lists(devices, min_size=1, max_size=4), st.integers(1, 50 << 30))
def test_a_refusal_names_what_is_missing_on_every_device(
    machines: list[tuple[Device, ...]], need: int
) -> None:
    names = "abcd"[: len(machines)]
    state = cluster(dict(zip(names, machines, strict=True)))
    wanted = replace(deployment(), weights_bytes=need, kv_bytes=0, compute_bytes=0)
    answer = place(state, liveness(names), wanted)
    if isinstance(answer, Placed):
        return
    told = {(verdict.node, verdict.device_id): verdict for verdict in answer.reasons}
    for name, cards in zip(names, machines, strict=True):
        for card in cards:
            verdict = told[name, card.device_id]
            needed, free = format_bytes(need), format_bytes(verdict.free_bytes)
            assert verdict.need_bytes == need > verdict.free_bytes
            assert f"needs {needed}, {free} free" in verdict.text
            assert needed != free or format_bytes(need - verdict.free_bytes) in verdict.text
        if not cards:
            assert told[name, ""].text == "has no usable device"


def _device(state: State, node: str, claim: Claim) -> Device:
    found = state.device(node, claim.device_id)
    assert found is not None
    return found


def test_what_others_are_known_to_use_of_a_budget_counts() -> None:
    sim = device("sim0", 8, Backend.SIM)
    state, wanted = cluster({"a": (sim,)}), deployment(gib=5)
    left = sim.total_bytes - wanted.need_bytes
    for others, fits in ((0, True), (left, True), (left + 1, False)):
        load = DeviceLoad("sim0", 0, used_by_others_bytes=others)
        seen = liveness("a", devices={"a": (load,)})
        assert free_on_a(state, seen) == sim.total_bytes - others
        assert isinstance(place(state, seen, wanted), Placed) is fits
