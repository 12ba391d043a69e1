"""Sequences of a real context: shared, cut, saved and restored, with the numbers compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fixtures.models import gemma_path, smollm2_path

from aivailable.wire.worker import DeviceClaim, Load
from aivailable.worker.engine import CellsExhausted, Logits, Part

pytest.importorskip("llama_cpp", reason="aivailable[engine] is not installed")

from aivailable.worker.llama.cache import StateRefused
from aivailable.worker.llama.engine import LlamaEngine

IDS = tuple(100 + number * 7919 % 5000 for number in range(90))


def make(path: Path, context: int = 256) -> LlamaEngine:
    claim = DeviceClaim("cpu0", "cpu", 0, 1 << 30)
    load = Load("r", "llama", str(path), context, 2, (claim,), {"threads": "1"})
    return LlamaEngine(load, lambda phase, fraction: None)


@pytest.fixture(scope="module")
def engine() -> LlamaEngine:
    return make(smollm2_path())


def feed(engine: LlamaEngine, slot: int, start: int, *chunks: int) -> Logits:
    at, rows = start, []
    for size in chunks:
        rows = engine.decode((Part(slot, IDS[at : at + size], at, wants_logits=True),))
        at += size
    return rows[0].copy()


def test_numbers_do_not_depend_on_chunks_below_64_tokens(engine: LlamaEngine) -> None:
    whole = feed(engine, 0, 0, 60, 30)
    assert np.array_equal(feed(engine, 1, 0, 2, 8, 50, 30), whole)


def test_a_fork_and_a_restored_sequence_go_on_alike(engine: LlamaEngine) -> None:
    for slot in range(engine.sequences):
        engine.trim(slot, 0)
    whole = feed(engine, 0, 0, 60, 30)
    assert engine.fork(0, 5, 60) == 60
    assert np.array_equal(feed(engine, 5, 60, 30), whole)
    engine.trim(5, 60)
    state = engine.cache.save(5)
    for slot in range(engine.sequences):
        engine.trim(slot, 0)
    assert engine.cache.restore(3, state) == 60
    assert np.array_equal(feed(engine, 3, 60, 30), whole)
    for wrong in (b"", state[:100], b"x" * len(state), state[:9] + b"\0" + state[10:]):
        with pytest.raises(StateRefused):
            engine.cache.restore(4, wrong)
        assert engine.cache.length(4) == 0


def test_a_full_cache_says_so_and_nothing_has_changed(engine: LlamaEngine) -> None:
    for slot in range(engine.sequences):
        engine.trim(slot, 0)
    for slot in range(5):
        feed(engine, slot, 0, 60, 30)
    with pytest.raises(CellsExhausted):
        feed(engine, 5, 0, 63)
    engine.trim(0, 0)
    assert np.isfinite(feed(engine, 5, 0, 60, 30)).all()


@pytest.mark.slow
def test_a_sliding_window_forgets_and_says_so() -> None:
    engine = make(gemma_path(), context=2048)
    assert engine.sequences == engine.slots
    ids = tuple(100 + number % 5000 for number in range(1600))
    for at in range(0, 1600, 40):
        engine.decode((Part(0, ids[at : at + 40], at, wants_logits=False),))
    assert engine.reach(0, 1590)
    assert engine.fork(0, 1, 1590) == 1590
