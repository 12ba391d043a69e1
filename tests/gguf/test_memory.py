"""The memory formula against what llama.cpp itself allocated, and its laws."""

from __future__ import annotations

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
"""Compute and output buffers of llama.cpp's dry run (worker/oracle.py, CPU)."""


@pytest.mark.parametrize(("context", "slots", "ubatch", "flash", "smollm2", "gemma"), MEASURED)
def test_compute_bytes_are_enough_and_not_much_more(
    context: int, slots: int, ubatch: int, flash: bool, smollm2: int, gemma: int
) -> None:
    for facts, measured in ((SMOLLM2, smollm2), (GEMMA, gemma)):
        predicted = need(facts, context, slots, "f16", ubatch, flash).compute_bytes
        assert measured <= predicted <= max(measured + 5 * MIB, measured * 1.25)


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
