"""Guesses with a real model: the texts of draft=0, the cache cut back, the memory counted."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from fixtures.models import gemma_path, smollm2_path
from fixtures.sessions import ListPort, ids_of, run

from aivailable.wire.generation import Constraint, Finished, Generate, Sampling
from aivailable.wire.worker import DeviceClaim, Load
from aivailable.worker.engine import LoadRefused

pytest.importorskip("llama_cpp", reason="aivailable[engine] is not installed")

from aivailable.gguf.header import read_header
from aivailable.gguf.memory import need
from aivailable.worker.generating.step_loop import StepLoop
from aivailable.worker.llama.engine import LlamaEngine

MIB = 1 << 20
TEXT = (
    "The quick brown fox jumps over the lazy dog. A journey of a thousand miles begins with a"
    " single step. All that glitters is not gold."
)
COPY = f"Repeat this text exactly, three times:\n{TEXT}"
GREEDY = Sampling(temperature=0.0)


def make(draft: str, path: Path | None = None, slots: int = 2) -> LlamaEngine:
    claim = DeviceClaim("cpu0", "cpu", 0, 1 << 30)
    options = {"threads": "1", "draft": draft}
    load = Load("r", "llama", str(path or smollm2_path()), 512, slots, (claim,), options)
    return LlamaEngine(load, lambda phase, fraction: None)


@pytest.fixture(scope="module")
def engines() -> tuple[LlamaEngine, LlamaEngine]:
    return make("0"), make("4")


def answer(engine: LlamaEngine, **more: Any) -> tuple[list[int], Finished, Any]:
    for slot in range(engine.sequences):
        engine.trim(slot, 0)
    values: dict[str, Any] = {"sampling": GREEDY, "max_tokens": 48, "deadline_s": 1e9, **more}
    if "prompt" not in values:
        values["messages"] = ({"role": "user", "content": COPY},)
    port = ListPort(Generate("a", "d", **values))
    # Every step takes as long as any other, so that guesses are always worth it.
    end = run(StepLoop(engine, port, clock=itertools.count().__next__), port, 1)["a"]
    assert isinstance(end, Finished), end
    counted = next(step.counters for step in reversed(port.sent) if step.counters is not None)
    return ids_of(port, "a"), end, counted


CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"sampling": Sampling(temperature=0.7, seed=7)},
    "stop string": {"stop": ("thousand miles",)},
    "penalties": {"sampling": Sampling(temperature=0.0, repeat_penalty=1.05)},
    "grammar": {"constraint": Constraint("gbnf", r"root ::= [A-Za-z .,:\n]*")},
}


@pytest.mark.parametrize("case", CASES)
def test_texts_are_those_without_guesses(
    engines: tuple[LlamaEngine, LlamaEngine], case: str
) -> None:
    plain, drafted = (answer(engine, **CASES[case]) for engine in engines)
    assert drafted[:2] == plain[:2]
    assert plain[2].drafted_tokens == 0
    assert drafted[2].accepted_tokens > 0
    assert drafted[2].steps < plain[2].steps


def test_options_and_notes(engines: tuple[LlamaEngine, LlamaEngine]) -> None:
    assert [note for engine in engines for note in engine.notes if note.startswith("draft")] == [
        "draft=0",
        "draft=4",
    ]
    automatic = make("auto")
    assert automatic.draft_tokens == 0
    assert "draft=0: it would not pay on a CPU" in automatic.notes
    chosen = [note for note in automatic.notes if note.startswith("flash_attention=")]
    assert chosen in (["flash_attention=on"], ["flash_attention=off"]), "what auto became"
    for wrong in ("17", "-1", "many", ""):
        with pytest.raises(LoadRefused, match="draft"):
            make(wrong)


def test_the_rows_of_all_guesses_are_counted() -> None:
    engine = make("8", slots=4)
    facts = read_header(str(smollm2_path())).facts
    guess = need(facts, 512, 4, ubatch=128, draft="8")
    real = engine.footprint
    assert real.compute_bytes <= guess.compute_bytes <= real.compute_bytes + 5 * MIB
    total = real.weights_bytes + real.kv_bytes + real.compute_bytes
    assert guess.total_bytes == pytest.approx(total, rel=0.05)


@pytest.mark.slow
def test_a_sliding_window_is_cut_back() -> None:
    path = gemma_path()
    asked = {"prompt": f"{TEXT} {TEXT} {TEXT}", "max_tokens": 96}
    plain, drafted = (answer(make(draft, path), **asked) for draft in ("0", "4"))
    assert drafted[:2] == plain[:2]
    assert drafted[2].accepted_tokens > 0
