"""Verdicts that add up, and advice that is true: what it says fits does fit."""

from __future__ import annotations

from dataclasses import replace

from fixtures.cluster_state import (
    DIGEST,
    FACTS,
    GIB,
    cluster,
    deployed,
    deployment,
    device,
    liveness,
    load,
    replica,
    running,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from aivailable.core.planning.fit_report import chosen, device_fits
from aivailable.core.state.records import Backend, Deployment
from aivailable.core.state.state import State
from aivailable.gguf.memory import need
from aivailable.wire.peer import DeviceLoad

BIG = replace(FACTS, layers=32, heads_kv=(8,) * 32, key_length=128, value_length=128)


def wanted(context: int = 8192, slots: int = 4, kv_type: str = "f16") -> Deployment:
    """1 GiB of weights and, as it is, 4 GiB of KV cache."""
    size = need(BIG, context, slots, kv_type)
    return Deployment(
        "new",
        DIGEST,
        context=context,
        slots=slots,
        options={"kv_type": kv_type},
        weights_bytes=size.weights_bytes,
        kv_bytes=size.kv_bytes,
        compute_bytes=size.compute_bytes,
    )


def busy(gib: float = 8.0) -> State:
    """One device with chat (4 GiB), idle, and work (2 GiB), busy, on it."""
    state = cluster({"a": (device(gib=gib),)})
    state = deployed(state, deployment("chat"), deployment("work", 2))
    return running(state, replica("chat#1.1", "a"), replica("work#1.1", "a", claim_gib=2.0))


HEARD = liveness("a", loads={"a": (load("chat#1.1"), load("work#1.1", slots_busy=2, waiting=1))})


def test_the_bytes_of_a_real_gpu_add_up() -> None:
    gpu = device(gib=8, backend=Backend.CUDA)
    state = deployed(cluster({"a": (gpu,)}), deployment())
    state = running(state, replica("chat#1.1", "a", used_bytes={"gpu0": 4 * GIB}))
    heard = liveness("a", devices={"a": (DeviceLoad("gpu0", 2 * GIB, 2 * GIB),)})
    (found,) = device_fits(state, heard, wanted(), BIG)
    assert found.free_bytes == (
        found.total_bytes - found.claimed_bytes - found.used_by_others_bytes - found.margin_bytes
    )
    assert (found.margin_bytes, found.used_by_others_bytes) == (256 << 20, 2 * GIB)
    assert found.missing_bytes == wanted().need_bytes - found.free_bytes
    assert chosen(state, heard, wanted()) is None


def test_what_would_make_it_fit_is_listed_each_way() -> None:
    (found,) = device_fits(busy(8.5), HEARD, wanted(), BIG)
    assert not found.fits
    ctx, slots, kv, evict = found.advice
    assert ctx == f"--ctx {found.context_max}"
    assert slots == "--slots 1"
    assert kv.startswith("--option kv_type=q8_0")
    assert evict == "evicting chat (4.0 GiB, idle now)"


def test_a_pinned_or_more_important_one_is_never_to_be_evicted() -> None:
    state = busy()
    kept = deployed(state, deployment("chat", pin=True), deployment("work", 2, priority=1))
    (found,) = device_fits(kept, HEARD, wanted(), BIG)
    assert not any("evicting" in text for text in found.advice)
    wide = replace(wanted(), weights_bytes=2 * GIB + GIB // 2, kv_bytes=4 * GIB)
    (found,) = device_fits(state, HEARD, wide, None)
    assert found.advice == ("evicting chat (4.0 GiB, idle now), work (2.0 GiB, 3 requests)",)
    (found,) = device_fits(state, HEARD, replace(wide, weights_bytes=8 * GIB), None)
    assert found.advice == ()


def test_a_node_that_is_out_of_the_question_says_why_on_each_device() -> None:
    state = cluster({"a": (device("x"), device("y")), "b": (device(),), "c": ()})
    drained = replace(state.members["b"], draining=True)
    state = replace(state, members={**state.members, "b": drained})
    found = device_fits(state, liveness("abc"), wanted(), BIG)
    assert [(f.node, f.device_id, f.fits) for f in found] == [
        ("a", "x", True),
        ("a", "y", True),
        ("b", "gpu0", False),
        ("c", "", False),
    ]
    assert found[2].obstacle == "draining"
    assert found[3].obstacle == "has no usable device"


def test_a_name_that_is_deployed_is_no_obstacle_to_one_more() -> None:
    state = busy(24)
    (found,) = device_fits(state, HEARD, replace(wanted(), name="chat"), BIG)
    assert found.fits


@settings(max_examples=80, deadline=None)
@given(
    free_mib=st.integers(200, 12_000),
    context=st.sampled_from((1024, 4096, 8192)),
    slots=st.integers(1, 8),
    kv_type=st.sampled_from(("f16", "q8_0", "q4_0")),
    off_mib=st.integers(-100, 400),
)
def test_whatever_is_advised_fits(
    free_mib: int, context: int, slots: int, kv_type: str, off_mib: int
) -> None:
    """Also where the dry run says other bytes than the formula."""
    asked = wanted(context, slots, kv_type)
    asked = replace(asked, weights_bytes=asked.weights_bytes + (off_mib << 20))
    state = cluster({"a": (device(gib=free_mib / 1024),)})
    (found,) = device_fits(state, liveness("a"), asked, BIG)
    assert found.fits == (chosen(state, liveness("a"), asked) is not None)
    for text in found.advice:
        words = text.split()
        given_ctx = int(words[words.index("--ctx") + 1]) if "--ctx" in words else context
        given_slots = int(words[words.index("--slots") + 1]) if "--slots" in words else slots
        given_kv = "q8_0" if "kv_type=q8_0" in words else kv_type
        size = need(BIG, given_ctx, given_slots, given_kv).total_bytes + (off_mib << 20)
        assert size <= found.free_bytes, text
