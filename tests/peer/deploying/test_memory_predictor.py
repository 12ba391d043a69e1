"""Predictions: by the dry run where there is an engine, by the formula whenever it fails."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures.gguf_writer import gguf_bytes
from fixtures.models import smollm2_path
from fixtures.tiny_models import random_lora
from fixtures.tiny_projectors import random_gemma_projector, random_projector

from aivailable.errors import GgufError
from aivailable.gguf.companions import WHOLE_IMAGE_TOKENS, read_projector
from aivailable.peer.deploying.memory_predictor import MemoryPredictor, by_formula
from aivailable.peer.ports import Prediction, PredictRequest
from aivailable.peer.runtimes import Interpreters, Starter
from aivailable.wire.worker import DeviceClaim


async def predict(
    request: PredictRequest, executable: str = sys.executable, limit_s: float = 30.0
) -> Prediction:
    return await MemoryPredictor(executable, limit_s).predict(request)


def executable(tmp_path: Path, body: str) -> str:
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o700)
    return str(path)


@pytest.fixture
def tiny(tmp_path: Path) -> PredictRequest:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_bytes())
    return PredictRequest(path, context=256, slots=2, options={})


async def test_an_answer_is_taken_from_the_last_line(tmp_path: Path, tiny: PredictRequest) -> None:
    sizes = '{"weights_bytes": 3, "kv_bytes": 2, "compute_bytes": 1}'
    child = executable(tmp_path, f"echo loading; echo '{sizes}'")
    found = await predict(tiny, child)
    assert (found.weights_bytes, found.kv_bytes, found.compute_bytes) == (3, 2, 1)
    assert found.by == "oracle"


async def test_a_gpu_is_asked_by_its_runtime_and_seen_alone(
    tmp_path: Path, tiny: PredictRequest
) -> None:
    told = tmp_path / "told"
    sizes = '{"weights_bytes": 3, "kv_bytes": 2, "compute_bytes": 1}'
    child = executable(tmp_path, f"echo \"$@\" $CUDA_VISIBLE_DEVICES > {told}; echo '{sizes}'")
    starter = Starter(Interpreters(None, child), places=lambda: {"0000:02:00.0": "1"})
    claim = DeviceClaim("0000:02:00.0", "cuda", 1, 0)
    found = await MemoryPredictor(starter=starter, device=lambda: claim).predict(tiny)
    assert found.by == "oracle"
    assert told.read_text().endswith("--backend cuda --device 0 1\n")


@pytest.mark.parametrize(
    "body",
    [
        "exit 1",
        "kill -9 $$",
        "echo not json",
        "echo '[1]'",
        'echo \'{"error": {"code": "unsupported", "message": "no engine"}}\'; exit 1',
        'echo \'{"weights_bytes": -1, "kv_bytes": 2, "compute_bytes": 1}\'',
        "exec sleep 60",
    ],
)
async def test_the_formula_stands_in(tmp_path: Path, tiny: PredictRequest, body: str) -> None:
    limit_s = 0.3 if "sleep" in body else 10.0
    found = await predict(tiny, executable(tmp_path, body), limit_s)
    assert found.by == "formula"
    assert found.weights_bytes > 0
    assert found.kv_bytes > 0


async def test_the_formula_stands_in_for_a_missing_interpreter(tiny: PredictRequest) -> None:
    assert (await predict(tiny, "/nonexistent/python")).by == "formula"


async def test_an_unusable_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "junk.gguf"
    path.write_bytes(b"junk")
    with pytest.raises(GgufError, match="junk"):
        await predict(PredictRequest(path, 256, 1, {}), sys.executable)
    missing = PredictRequest(tmp_path / "missing.gguf", 256, 1, {})
    with pytest.raises(GgufError, match="missing"):
        await predict(missing, sys.executable)


async def test_an_unknown_kv_type_is_an_error(tmp_path: Path, tiny: PredictRequest) -> None:
    wrong = PredictRequest(tiny.path, 256, 1, {"kv_type": "q9"})
    with pytest.raises(ValueError, match="q9"):
        await predict(wrong, executable(tmp_path, "exit 1"))


async def test_an_option_that_no_load_can_have_is_an_error(
    tmp_path: Path, tiny: PredictRequest
) -> None:
    """The formula knows few options: it must not stand in for a refusal of another one."""
    said = '{"error": {"code": "invalid_options", "message": "threads must be a number"}}'
    with pytest.raises(ValueError, match="threads must be a number"):
        await predict(tiny, executable(tmp_path, f"echo '{said}'; exit 1"))


async def test_a_file_that_llama_cpp_refuses_is_an_error(
    tmp_path: Path, tiny: PredictRequest
) -> None:
    """The header alone is right: by the formula it would be deployed, and no load would succeed."""
    said = '{"error": {"code": "bad_file", "message": "blk.4.attn_q.weight not found"}}'
    with pytest.raises(GgufError, match="attn_q"):
        await predict(tiny, executable(tmp_path, f"echo '{said}'; exit 1"))


async def test_the_dry_run_itself_refuses_a_wrong_option() -> None:
    pytest.importorskip("llama_cpp", reason="no inference engine is installed")
    request = PredictRequest(smollm2_path(), context=256, slots=1, options={"numa": "yes"})
    with pytest.raises(ValueError, match="numa='yes' must be one of off, distribute, isolate"):
        await predict(request)


async def test_dry_run_and_formula_agree_on_a_real_model(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="no inference engine is installed")
    request = PredictRequest(smollm2_path(), context=512, slots=2, options={})
    exact = await predict(request)
    guessed = await predict(request, executable(tmp_path, "exit 1"))
    assert (exact.by, guessed.by) == ("oracle", "formula")
    assert (guessed.weights_bytes, guessed.kv_bytes) == (exact.weights_bytes, exact.kv_bytes)
    whole = exact.weights_bytes + exact.kv_bytes + exact.compute_bytes
    guess = guessed.weights_bytes + guessed.kv_bytes + guessed.compute_bytes
    # The formula assumes a GPU's larger ubatch: it may claim too much, never too little.
    assert 0.96 * whole < guess < 1.2 * whole


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "mean", "ubatch": "128"},
        {"pooling": "last", "ubatch": "512", "flash_attention": "on"},
        {"lora": "lora.gguf:0.5", "ubatch": "128", "draft": "0"},
        {"lora": "lora.gguf,lora.gguf:-1", "pooling": "mean", "ubatch": "64"},
        {"projector": "mmproj.gguf", "ubatch": "256", "draft": "4", "flash_attention": "off"},
    ],
)
async def test_the_formula_knows_vectors_and_companions(
    tmp_path: Path, options: dict[str, str]
) -> None:
    pytest.importorskip("llama_cpp", reason="no inference engine is installed")
    path = tmp_path / "model.gguf"
    path.symlink_to(smollm2_path())
    random_lora(tmp_path)
    random_projector(tmp_path)
    request = PredictRequest(path, context=1024, slots=4, options=options)
    exact = await predict(request)
    guessed = by_formula(request)
    assert (exact.by, guessed.by) == ("oracle", "formula")
    assert (guessed.weights_bytes, guessed.kv_bytes) == (exact.weights_bytes, exact.kv_bytes)
    whole = exact.weights_bytes + exact.kv_bytes + exact.compute_bytes
    guess = guessed.weights_bytes + guessed.kv_bytes + guessed.compute_bytes
    assert guess == pytest.approx(whole, rel=0.05)


def test_the_formula_counts_a_projector_and_what_an_image_takes(tiny: PredictRequest) -> None:
    projector = read_projector(random_projector(tiny.path.parent))
    plain, seeing = (
        by_formula(tiny),
        by_formula(replace(tiny, options={"projector": "mmproj.gguf"})),
    )
    assert seeing.weights_bytes - plain.weights_bytes == projector.weights_bytes > 0
    assert seeing.compute_bytes - plain.compute_bytes == projector.compute_bytes > 0


def test_the_formula_makes_room_for_an_image_in_one_piece(tiny: PredictRequest) -> None:
    name = random_gemma_projector(tiny.path.parent, "whole.gguf").name
    small, large = (
        by_formula(
            replace(tiny, context=2048, options={"projector": name, "ubatch": str(ubatch)})
        ).compute_bytes
        for ubatch in (WHOLE_IMAGE_TOKENS // 4, WHOLE_IMAGE_TOKENS)
    )
    assert small == large


async def test_an_adapter_that_is_none_is_refused_by_the_formula_too(tiny: PredictRequest) -> None:
    wrong = PredictRequest(tiny.path, 256, 1, {"lora": "tiny.gguf"})
    with pytest.raises(GgufError, match="no LoRA adapter"):
        by_formula(wrong)
