"""What a load was measured to need wins next time; what failed is tried once with it."""

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
    report,
    run,
    settle,
)
from hypothesis import given
from hypothesis import strategies as st

from aivailable.core.planning.planner import explanations
from aivailable.core.state.commands import Place, ReportReplica
from aivailable.core.state.learned_memory import learned_bytes, measured_key, sized, with_learned
from aivailable.core.state.records import Deployment, Status
from aivailable.core.state.state import State


def failed(state: State, name: str, used_bytes: dict[str, int]) -> State:
    state = report(state, name, Status.LOADING)
    return run(state, ReportReplica(name, "a", Status.FAILED, "over_claim", used_bytes), "a")


def claims(bodies: tuple[object, ...]) -> list[int]:
    return [body.claims[0].claim_bytes for body in bodies if isinstance(body, Place)]


def test_a_load_that_needs_more_is_tried_once_with_it_and_then_explained() -> None:
    heard = liveness("a")
    state, bodies = settle(deployed(cluster({"a": (device(),)}), deployment(gib=4)), heard)
    assert claims(bodies) == [4 * GIB]
    state = failed(state, "chat#1.1", {"gpu0": 5 * GIB})
    state, bodies = settle(state, heard)
    assert claims(bodies) == [5 * GIB]
    state = failed(state, "chat#1.2", {"gpu0": 6 * GIB})
    state, bodies = settle(state, heard)
    assert bodies == ()
    assert "over_claim" in explanations(state, heard)["chat"]


def test_what_was_learned_on_one_node_is_known_on_the_others() -> None:
    state, _ = settle(deployed(cluster({"a": (device(),)}), deployment(gib=4)), liveness("a"))
    state = failed(state, "chat#1.1", {"gpu0": 9 * GIB})
    state, bodies = settle(state, liveness("a"))
    assert bodies == ()
    assert "needs 9.0 GiB, 8.0 GiB free" in explanations(state, liveness("a"))["chat"]


def test_a_success_is_measured_too_and_moves_nothing() -> None:
    heard = liveness("a")
    state, _ = settle(deployed(cluster({"a": (device(),)}), deployment(gib=4)), heard)
    state = report(state, "chat#1.1", Status.LOADING)
    state = run(state, ReportReplica("chat#1.1", "a", Status.READY, "", {"gpu0": 3 * GIB}), "a")
    assert learned_bytes(state, DIGEST, 4096, 4, {}) == 3 * GIB
    assert learned_bytes(state, DIGEST, 4096, 4, {"threads": "3"}) == 3 * GIB
    for context, slots, options in ((2048, 4, {}), (4096, 2, {}), (4096, 4, {"ubatch": "64"})):
        assert learned_bytes(state, DIGEST, context, slots, options) is None
    assert learned_bytes(state, DIGEST, 4096, 4, {"kv_type": "q8_0"}) is None
    assert sized(state)[0].need_bytes == 4 * GIB
    _, bodies = settle(state, heard)
    assert bodies == ()


def test_a_replica_of_an_older_generation_teaches_nothing() -> None:
    """Found by the simulation (memory seed 203): changed to a tenth while the old one loaded."""
    state, _ = settle(deployed(cluster({"a": (device(),)}), deployment(gib=4)), liveness("a"))
    state = report(state, "chat#1.1", Status.LOADING)
    state = deployed(state, deployment(gib=0.4, generation=2))
    state = run(state, ReportReplica("chat#1.1", "a", Status.READY, "", {"gpu0": 4 * GIB}), "a")
    assert state.measured == {}
    assert sized(state)[0].need_bytes == round(0.4 * GIB)


def test_another_file_of_the_same_name_is_another_configuration() -> None:
    styled = deployment(gib=4, **STYLED)
    state = deployed(cluster({"a": (device(),)}), styled)
    state = replace(state, copies={DIGEST: ("a",), LORA: ("a",)})
    state, _ = settle(state, liveness("a"))
    state = report(state, "chat#1.1", Status.LOADING)
    state = run(state, ReportReplica("chat#1.1", "a", Status.READY, "", {"gpu0": 3 * GIB}), "a")
    assert learned_bytes(state, DIGEST, 4096, 4, styled.settled_options) == 3 * GIB
    other = replace(styled, companions=(replace(styled.companions[0], digest="e" * 64),))
    assert learned_bytes(state, DIGEST, 4096, 4, other.settled_options) is None
    elsewhere = replace(styled, options={"lora": "/there/style.gguf:0.50"}, companions=(
        replace(styled.companions[0], path="/there/style.gguf"),
    ))  # fmt: skip
    assert elsewhere.settled_options == styled.settled_options


def test_other_predictions_are_not_confused() -> None:
    """Two deployments of one file and shape that were predicted differently."""
    state, _ = settle(deployed(cluster({"a": (device(),)}), deployment(gib=4)), liveness("a"))
    state = failed(state, "chat#1.1", {"gpu0": 5 * GIB})
    state = deployed(state, deployment("other", 2))
    sizes = {entry.name: entry.need_bytes for entry in sized(state)}
    assert sizes == {"chat": 5 * GIB, "other": 2 * GIB}


@given(*[st.integers(0, 1 << 40)] * 2, st.integers(1, 1 << 41))
def test_the_parts_add_up_to_what_was_learned(weights: int, kv: int, learned: int) -> None:
    parts = with_learned(weights, kv, learned)
    assert sum(parts) == learned
    assert min(parts) >= 0
    assert parts[0] <= weights


def test_the_key_keeps_its_parts_apart() -> None:
    wicked = {"lora": "a|b|c", "kv_type": "q4_0"}
    key = measured_key(DIGEST, device(), 1, 2, wicked)
    assert len(key.split("|")) == 7
    assert isinstance(deployment(), Deployment)
