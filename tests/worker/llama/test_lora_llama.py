"""LoRA adapters on a real model: applied, counted, refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fixtures.models import smollm2_path
from fixtures.tiny_models import random_lora, tiny_bert
from fixtures.worker_process import MIB, WorkerProcess

from aivailable.wire.generation import Generate, Sampling
from aivailable.wire.worker import DeviceClaim, Load, LoadFailed, Ready

pytest.importorskip("llama_cpp", reason="aivailable[engine] is not installed")


def load(claim: int = 512 * MIB, **options: str) -> Load:
    device = DeviceClaim("cpu0", "cpu", 0, claim)
    return Load("r1", "llama", str(smollm2_path()), 256, 1, (device,), options)


def greedy_ids(given: Load) -> tuple[list[int], Ready]:
    request = Generate(
        "g", "d", prompt="The sea is", max_tokens=8, sampling=Sampling(temperature=0.0)
    )
    with WorkerProcess() as process:
        ready = process.load(given)
        assert isinstance(ready, Ready), ready
        return process.answers(request)["g"].ids, ready


def test_scale_one_changes_the_answer_and_scale_zero_does_not(tmp_path: Path) -> None:
    path = random_lora(tmp_path)
    base, plain = greedy_ids(load())
    none, _ = greedy_ids(load(lora=f"{path}:0"))
    full, ready = greedy_ids(load(lora=f"{path}:1.0"))
    assert none == base
    assert full != base
    assert "lora=lora.gguf:1" in ready.notes
    size = 2 * 4 * (4 * 576 + 4 * 1536)
    assert ready.weights_bytes - plain.weights_bytes == pytest.approx(size, abs=MIB // 64)


def test_the_dry_run_counts_the_adapter(tmp_path: Path) -> None:
    option = f"lora={random_lora(tmp_path)}"
    command = [sys.executable, "-m", "aivailable.worker.dry_run", "--path", str(smollm2_path())]
    command += ["--context", "256", "--slots", "1"]
    sizes = []
    for more in ([], ["--option", option]):
        said = subprocess.run([*command, *more], capture_output=True, check=True, timeout=60)
        sizes.append(sum(json.loads(said.stdout).values()))
    assert sizes[1] > sizes[0] + 2 * 4 * (4 * 576 + 4 * 1536)
    _, ready = greedy_ids(load(claim=sizes[1], lora=option.removeprefix("lora=")))
    assert ready.used_bytes["cpu0"] == pytest.approx(sizes[1], abs=MIB // 8)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"general__architecture": "qwen3"}, "'qwen3', the model is 'llama'"),
        ({"general__type": "model"}, "no LoRA adapter"),
        ({"adapter__lora__alpha": None}, "alpha"),
    ],
)
def test_a_wrong_adapter_is_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    refused(load(lora=str(random_lora(tmp_path, **changed))), said)


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    refused(load(lora="nowhere.gguf"), "nowhere.gguf: cannot be read")
    refused(load(lora=str(tiny_bert(tmp_path))), "no LoRA adapter")
    refused(load(lora=f"{random_lora(tmp_path)}:1e9"), "scale 1e+09")


def refused(given: Load, said: str) -> None:
    with WorkerProcess() as process:
        answer = process.load(given)
        assert isinstance(answer, LoadFailed), answer
        assert said in answer.message
