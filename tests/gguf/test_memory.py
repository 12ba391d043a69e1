"""The memory formula against what llama.cpp itself allocated, and its laws."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fixtures.models import smollm2_path
from hypothesis import given
from hypothesis import strategies as st

from aivailable.gguf import ModelFacts, largest_context, need, read_header

MIB = 1 << 20
SMOLLM2 = ModelFacts(
    "llama", "s", 8192, 30, 576, (3,) * 30, 64, 64, 49152, 96_576_768, heads=9, feed_forward=1536
)
GEMMA = ModelFacts(
    "gemma3",
    "g",
    32768,
    18,
    640,
    (1,) * 18,
    256,
    256,
    262144,
    246_587_904,
    sliding_window=512,
    sliding_layers=tuple(layer % 6 < 5 for layer in range(18)),
    heads=4,
    feed_forward=2048,
)


@pytest.mark.parametrize(
    ("facts", "context", "slots", "kv_type", "kv_mib"),
    [
        (SMOLLM2, 2048, 1, "f16", 45.0),
        (SMOLLM2, 8192, 1, "f16", 180.0),
        (SMOLLM2, 2048, 4, "f16", 180.0),
        (SMOLLM2, 8192, 1, "q8_0", 95.625),
        (SMOLLM2, 8192, 1, "q4_0", 50.625),
        (GEMMA, 8192, 1, "f16", 39.0),
    ],
)
def test_kv_bytes_equal_llama_cpps_own(
    facts: ModelFacts, context: int, slots: int, kv_type: str, kv_mib: float
) -> None:
    assert need(facts, context, slots, kv_type).kv_bytes == kv_mib * MIB


def test_facts_above_are_the_files() -> None:
    facts = read_header(smollm2_path()).facts
    assert need(facts, 4096, 2) == need(SMOLLM2, 4096, 2)


MEASURED = [
    # context, slots, ubatch, flash attention, bytes of SmolLM2, bytes of Gemma 3 270M
    (2048, 1, 128, True, 4_288_676, 5_379_195),
    (2048, 4, 128, True, 5_819_597, 7_340_032),
    (8192, 1, 512, True, 22_596_813, 28_070_380),
    (8192, 1, 128, False, 46_001_030, 23_928_505),
    (2048, 4, 512, True, 22_733_128, 29_643_244),
    (8192, 16, 512, True, 153_018_696, 161_763_820),
]
"""Compute and output buffers of llama.cpp's dry run (worker/dry_run.py, CPU)."""


@pytest.mark.parametrize(("context", "slots", "ubatch", "flash", "smollm2", "gemma"), MEASURED)
def test_compute_bytes_are_enough_and_not_much_more(
    context: int, slots: int, ubatch: int, flash: bool, smollm2: int, gemma: int
) -> None:
    for facts, measured in ((SMOLLM2, smollm2), (GEMMA, gemma)):
        predicted = need(facts, context, slots, "f16", ubatch, flash).compute_bytes
        assert measured <= predicted <= max(measured + 5 * MIB, measured * 1.25)


@pytest.mark.parametrize(
    ("facts", "context", "ubatch", "flash", "compute_mib"),
    [
        (SMOLLM2, 512, 128, True, 43.20),
        (SMOLLM2, 8192, 512, True, 196.25),
        (SMOLLM2, 8192, 128, False, 59.82),
        (GEMMA, 512, 128, True, 256.50),
        (GEMMA, 2048, 512, False, 1033.52),
    ],
)
def test_vectors_need_what_the_dry_run_says(
    facts: ModelFacts, context: int, ubatch: int, flash: bool, compute_mib: float
) -> None:
    size = need(facts, context, 4, "f16", ubatch, flash, pooling="mean")
    # Texts share one sequence's cells, however many slots.
    assert size.kv_bytes == need(facts, context, 1, "f16", ubatch, flash).kv_bytes
    measured = size.weights_bytes + size.kv_bytes + compute_mib * MIB
    assert measured <= size.total_bytes <= 1.05 * measured


def test_an_encoder_has_no_cache_and_computes_a_text_at_once() -> None:
    encoder = replace(SMOLLM2, pooling="cls", causal=False, context_train=512)
    assert need(encoder, 512, 4).kv_bytes == 0
    assert need(encoder, 4096, 4, ubatch=64) == need(encoder, 512, 1, ubatch=512)


@pytest.mark.parametrize(
    ("context", "flash", "real_mib"),
    [(256, True, 63.65), (512, True, 74.91), (256, False, 66.34), (512, False, 86.60)],
)
def test_an_encoder_needs_what_it_took(context: int, flash: bool, real_mib: float) -> None:
    weights = round(53.09 * MIB)
    encoder = ModelFacts("bert", "e", 512, 6, 384, (12,) * 6, 32, 32, 8000, weights)
    encoder = replace(encoder, pooling="mean", causal=False, heads=12, feed_forward=1536)
    predicted = need(encoder, context, 4, flash_attention=flash).total_bytes
    assert real_mib * MIB <= predicted <= 1.05 * real_mib * MIB


def test_adapters_are_counted() -> None:
    plain, adapted = need(SMOLLM2, 512, 2), need(SMOLLM2, 512, 2, adapters_bytes=MIB)
    assert adapted.weights_bytes == plain.weights_bytes + MIB
    assert adapted.compute_bytes == plain.compute_bytes + 512 * 1536 * 4


def test_wrong_sizes_are_refused() -> None:
    for wrong in ({"context": 0}, {"slots": 0}, {"ubatch": 0}, {"kv_type": "q9"}):
        with pytest.raises(ValueError):
            need(SMOLLM2, **{"context": 512, "slots": 1, **wrong})  # type: ignore[arg-type]


@given(
    budget=st.integers(0, 4096 * MIB),
    slots=st.integers(1, 16),
    kv_type=st.sampled_from(["f16", "q8_0", "q4_0"]),
    facts=st.sampled_from([SMOLLM2, GEMMA]),
)
def test_largest_context_fits_and_the_next_does_not(
    budget: int, slots: int, kv_type: str, facts: ModelFacts
) -> None:
    context = largest_context(facts, budget, slots, kv_type, most=32768)
    if context:
        assert need(facts, context, slots, kv_type).total_bytes <= budget
    if context < 32768:
        assert need(facts, context + 256, slots, kv_type).total_bytes > budget
