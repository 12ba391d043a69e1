"""Engine options of a deployment: what is wrong with one is told before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from fixtures.models import smollm2_path

from aivailable.gguf import read_header
from aivailable.gguf.facts import ModelFacts
from aivailable.worker.engine import OptionRefused
from aivailable.worker.llama.adapters import adapters_of
from aivailable.worker.llama.parameters import KNOWN_OPTIONS, context_parameters, parameters
from aivailable.worker.llama.projector import projector_of
from aivailable.worker.loading import check_sizes

WRONG = {
    "unknown": ({"colour": "red"}, "unknown engine option colour; known: draft, flash_attention"),
    "not a number": ({"threads": "many"}, "threads='many' must be a whole number, 1 to 256"),
    "too small": ({"ubatch": "0"}, "ubatch='0' must be a whole number, 32 to 4096"),
    "negative": ({"warm_tokens": "-1"}, "warm_tokens='-1' must be"),
    "huge": ({"threads": "9" * 30}, "threads='9999"),
    "not a choice": ({"flash_attention": "maybe"}, "must be one of auto, off, on"),
    "numa": ({"numa": "yes"}, "must be one of off, distribute, isolate"),
    "kv type": ({"kv_type": "q9"}, "kv_type='q9' must be one of"),
    "together": ({"kv_type": "q8_0", "flash_attention": "off"}, "needs flash_attention"),
    "draft": ({"draft": "x"}, "draft='x' must be auto or 0 to"),
    "pooling": ({"pooling": "rank"}, "no classification head"),
    "no adapter": ({"lora": "/none.gguf"}, "option lora: /none.gguf: cannot be read"),
    "no projector": ({"projector": "/none.gguf"}, "option projector: /none.gguf: cannot be read"),
    "scale": ({"lora": "a.gguf:1e9"}, "scale 1e\\+09 is not within 100"),
}
REACHES = {
    "kv_type": ("q8_0", "type_k", 8),
    "ubatch": ("64", "n_ubatch", 64),
    "threads": ("3", "n_threads", 3),
    "flash_attention": ("on", "flash_attn_type", 1),
    "warm_tokens": ("100", "warm", 100),
    "numa": ("isolate", "numa", "isolate"),
}
"""An option's value, and what it becomes: of llama.cpp's context, or of our own sizes."""
SEEN_BY = {
    "draft": "tests/worker/generating/test_drafting_llama.py",
    "pooling": "tests/worker/embedding/test_embedding_llama.py",
    "lora": "tests/worker/llama/test_lora_llama.py",
    "projector": "tests/worker/llama/test_vision_llama.py",
}
"""Options that do more than one number: the test with a real model that sees them work."""
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def facts() -> ModelFacts:
    return read_header(smollm2_path()).facts


def read(facts: ModelFacts, options: dict[str, str]) -> None:
    adapters_of("/model.gguf", facts, options)
    projector_of("/model.gguf", options)
    parameters(facts, 512, 2, options, on_gpu=False)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_option_is_refused_as_one(facts: ModelFacts, name: str) -> None:
    options, said = WRONG[name]
    with pytest.raises(OptionRefused, match=said) as caught:
        read(facts, options)
    assert caught.value.code == ("bad_file" if name.startswith("no ") else "unsupported")


@pytest.mark.parametrize(
    ("context", "slots"), [(1, 4), (15, 1), (512, 65), (512, 0), (1 << 21, 1), (1 << 20, 64)]
)
def test_sizes_that_no_load_can_have_are_refused_as_such(context: int, slots: int) -> None:
    with pytest.raises(OptionRefused):
        check_sizes(context, slots)


@pytest.mark.parametrize("name", REACHES)
def test_an_option_reaches_the_engine(facts: ModelFacts, name: str) -> None:
    text, field, value = REACHES[name]
    made = parameters(facts, 512, 2, {name: text}, on_gpu=False)
    library = SimpleNamespace(llama_context_default_params=SimpleNamespace)
    told = context_parameters(library, made)
    assert getattr(told, field, getattr(made, field, None)) == value


def test_every_option_is_seen_to_work_and_told_to_users() -> None:
    assert sorted((*REACHES, *SEEN_BY)) == sorted(KNOWN_OPTIONS)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in KNOWN_OPTIONS if f"`{name}`" not in readme] == []
    for name, path in SEEN_BY.items():
        assert f'"{name}' in (ROOT / path).read_text(encoding="utf-8")
