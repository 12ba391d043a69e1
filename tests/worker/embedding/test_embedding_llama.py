"""Embeddings and rerank in a real worker process: a generating model with pooling, an encoder,
a reranker."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from fixtures.models import smollm2_path
from fixtures.tiny_models import CONTEXT, WIDTH, WORDS, tiny_bert, tiny_reranker
from fixtures.worker_process import MIB, WorkerProcess

from aivailable.wire.generation import Cancel, Failed, Finished, Generate
from aivailable.wire.worker import DeviceClaim, Load, LoadFailed, Ready

pytest.importorskip("llama_cpp", reason="aivailable[engine] is not installed")

Vector = npt.NDArray[np.float32]
SMOL_WIDTH = 576
NOISE = 2e-3
"""Other sizes of a batch take other kernels: this far apart in cosine at most."""


def load(path: Path, context: int = 512, claim: int = 512 * MIB, **options: str) -> Load:
    device = DeviceClaim("cpu0", "cpu", 0, claim)
    return Load("r1", "llama", str(path), context, 2, (device,), options)


def embed(request_id: str, *texts: str, query: str | None = None) -> Generate:
    task = "embed" if query is None else "rerank"
    return Generate(request_id, "d", task=task, inputs=texts, prompt=query)  # type: ignore[arg-type]


def vectors(worker: WorkerProcess, request: Generate) -> tuple[list[Vector], Finished]:
    seen = len(worker.steps)
    end = worker.answers(request)[request.request_id].end
    assert isinstance(end, Finished), end
    found: dict[int, Vector] = {}
    for step in worker.steps[seen:]:
        for embedded in step.embedded:
            if embedded.request_id == request.request_id:
                assert embedded.index not in found
                found[embedded.index] = np.frombuffer(embedded.vector, "<f4")
    return [found[index] for index in range(len(request.inputs or request.input_ids))], end


def failure(worker: WorkerProcess, request: Generate) -> Failed:
    end = worker.answers(request)[request.request_id].end
    assert isinstance(end, Failed)
    return end


TEXTS = [
    "The cat sat on the mat and slept.",
    "A cat is sleeping on a rug.",
    "Interest rates rose by half a percent in March.",
]


@pytest.fixture(scope="module", params=["mean", "last"])
def smol(request: pytest.FixtureRequest) -> Iterator[tuple[WorkerProcess, str]]:
    with WorkerProcess() as process:
        ready = process.load(load(smollm2_path(), pooling=request.param))
        assert isinstance(ready, Ready), ready
        assert ready.tasks == ("embed",)
        assert f"pooling={request.param}" in ready.notes
        yield process, request.param


def reference(text: str, pooling: str) -> Vector:
    """Token vectors from llama-cpp-python's own high-level class, pooled by numpy."""
    from llama_cpp import LLAMA_POOLING_TYPE_NONE, Llama

    model = Llama(
        str(smollm2_path()),
        embedding=True,
        pooling_type=LLAMA_POOLING_TYPE_NONE,
        n_ctx=512,
        n_threads=1,
        use_extra_bufts=False,
        verbose=False,
    )
    try:
        rows = np.asarray(model.embed(text), np.float32)
    finally:
        model.close()
    pooled = rows.mean(axis=0) if pooling == "mean" else rows[-1]
    return (pooled / np.linalg.norm(pooled)).astype(np.float32)


def test_vectors_are_those_of_the_library(smol: tuple[WorkerProcess, str]) -> None:
    worker, pooling = smol
    (vector,), end = vectors(worker, embed(f"ref{pooling}", TEXTS[0]))
    assert vector.shape == (SMOL_WIDTH,)
    assert float(np.linalg.norm(vector)) == pytest.approx(1.0, abs=1e-5)
    assert float(vector @ reference(TEXTS[0], pooling)) > 1 - NOISE
    assert 5 < end.prompt_tokens < 20


def test_batched_equals_solo_and_like_is_near_like(smol: tuple[WorkerProcess, str]) -> None:
    worker, pooling = smol
    together, _ = vectors(worker, embed(f"all{pooling}", *TEXTS, *TEXTS))
    for index, text in enumerate(TEXTS):
        (alone,), _ = vectors(worker, embed(f"one{pooling}{index}", text))
        assert float(alone @ together[index]) > 1 - NOISE
        assert float(together[index] @ together[index + len(TEXTS)]) > 1 - NOISE
    if pooling == "mean":
        assert together[0] @ together[1] > together[0] @ together[2]


def test_a_text_longer_than_a_step_is_pooled_over_all_of_it(
    smol: tuple[WorkerProcess, str],
) -> None:
    worker, pooling = smol
    long = " ".join(TEXTS * 5)
    (vector,), end = vectors(worker, embed(f"long{pooling}", long))
    assert end.prompt_tokens > 128
    assert float(vector @ reference(long, pooling)) > 1 - NOISE


def test_what_is_refused_names_the_numbers(smol: tuple[WorkerProcess, str]) -> None:
    worker, pooling = smol
    end = failure(worker, embed(f"huge{pooling}", "short", "word " * 700))
    assert (end.code, end.status) == ("context_length_exceeded", 400)
    assert "input 1 has 70" in end.message
    assert "takes 512" in end.message
    chat = Generate(f"chat{pooling}", "d", prompt="hello")
    assert f"pooling={pooling}" in failure(worker, chat).message
    assert failure(worker, embed(f"rank{pooling}", "a", query="b")).code == "unsupported_task"


def test_cancel_between_steps(smol: tuple[WorkerProcess, str]) -> None:
    worker, pooling = smol
    name = f"cancel{pooling}"
    worker.send(embed(name, *[" ".join(TEXTS * 12)] * 50))
    worker.started(name)
    worker.send(Cancel(name))
    end = worker.collect(name)[name].end
    assert isinstance(end, Finished)
    assert end.reason == "cancelled"
    assert vectors(worker, embed(f"after{pooling}", TEXTS[0]))[0][0].any()


def test_a_generating_deployment_says_how_to_embed() -> None:
    with WorkerProcess() as process:
        ready = process.load(load(smollm2_path()))
        assert isinstance(ready, Ready)
        assert ready.tasks == ("generate",)
        end = failure(process, embed("e", "text"))
        assert end.code == "unsupported_task"
        assert "option pooling=mean" in end.message
        assert "rank" in failure(process, embed("r", "text", query="q")).message


@pytest.mark.parametrize(
    ("options", "said"), [({"pooling": "none"}, "mean, cls, last"), ({"pooling": "rank"}, "head")]
)
def test_a_pooling_that_cannot_be_is_refused(options: dict[str, str], said: str) -> None:
    with WorkerProcess() as process:
        answer = process.load(load(smollm2_path(), **options))
        assert isinstance(answer, LoadFailed)
        assert said in answer.message


def test_an_encoder_pools_as_its_header_says(tmp_path: Path) -> None:
    texts = ["the sea is blue", "a red house", " ".join(WORDS * 5), "river"] * 12
    with WorkerProcess() as process:
        # Deployed with more than it was trained for: its table of positions ends before.
        ready = process.load(load(tiny_bert(tmp_path), context=4 * CONTEXT))
        assert isinstance(ready, Ready), ready
        assert (ready.tasks, ready.kv_bytes, ready.context) == (("embed",), 0, CONTEXT)
        together, end = vectors(process, embed("all", *texts))
        assert end.prompt_tokens == 12 * (6 + 5 + 57 + 3)
        for index in range(4):
            (alone,), _ = vectors(process, embed(f"one{index}", texts[index]))
            assert alone.shape == (WIDTH,)
            for copy in together[index::4]:
                assert float(alone @ copy) == pytest.approx(1.0, abs=1e-4)
        assert abs(float(together[0] @ together[1])) < 0.99
        # Not causal: the first token sees the last one, so the order of words matters.
        assert failure(process, embed("big", " ".join(WORDS * 6))).code == "context_length_exceeded"


def test_token_ids_are_a_text_of_their_own(tmp_path: Path) -> None:
    words = {word: 4 + index for index, word in enumerate(WORDS)}
    begin, end = 2, 3
    sea = (begin, words["the"], words["sea"], end)
    with WorkerProcess() as process:
        assert isinstance(process.load(load(tiny_bert(tmp_path))), Ready)
        (text,), told = vectors(process, embed("text", "the sea"))
        request = Generate("ids", "d", task="embed", input_ids=(sea, sea[1:3]))
        (ids, bare), counted = vectors(process, request)
        assert told.prompt_tokens == len(sea)
        assert counted.prompt_tokens == len(sea) + 2
        assert float(text @ ids) == pytest.approx(1.0, abs=1e-4)
        assert float(text @ bare) < 0.9999
        for wrong, said in (((99,), "0 to 14"), ((-1,), "0 to 14"), ((), "no tokens")):
            ids_only = Generate(f"w{wrong}", "d", task="embed", input_ids=(sea, wrong))
            refused = failure(process, ids_only)
            assert refused.status == 400
            assert "input 1" in refused.message
            assert said in refused.message
        both = Generate("both", "d", task="embed", inputs=("sea",), input_ids=(sea,))
        assert "alone" in failure(process, both).message


def test_an_encoders_first_token_sees_the_whole_text(tmp_path: Path) -> None:
    with WorkerProcess() as process:
        assert isinstance(process.load(load(tiny_bert(tmp_path), pooling="cls")), Ready)
        (first, second), _ = vectors(process, embed("x", "the sea is blue", "the sea is green"))
        assert abs(float(first @ second)) < 0.9999


def test_a_reranker_scores_pairs(tmp_path: Path) -> None:
    documents = ["the river is water", "a red house", "stone", "the river is water"]
    with WorkerProcess() as process:
        ready = process.load(load(tiny_reranker(tmp_path)))
        assert isinstance(ready, Ready), ready
        assert ready.tasks == ("rerank",)
        scores, end = vectors(process, embed("r", *documents, query="the sea"))
        assert [len(score) for score in scores] == [1] * 4
        assert scores[0][0] == pytest.approx(float(scores[3][0]), abs=1e-4)
        assert len({round(float(score[0]), 3) for score in scores}) == 3
        other, _ = vectors(process, embed("q", *documents, query="blue stone"))
        assert other[0][0] != pytest.approx(float(scores[0][0]), abs=1e-3)
        # As by llama.cpp's server: begin, query, end, separator, document, end.
        assert end.prompt_tokens == 4 * (2 + 4) + 4 + 3 + 1 + 4
        assert failure(process, embed("no", "text")).code == "unsupported_task"


def test_a_ranking_file_without_a_head_is_refused(tmp_path: Path) -> None:
    path = tiny_bert(tmp_path)
    path.write_bytes(
        path.read_bytes().replace(
            b"bert.pooling_type" + bytes([4, 0, 0, 0, 1]),
            b"bert.pooling_type" + bytes([4, 0, 0, 0, 4]),
        )
    )
    with WorkerProcess() as process:
        answer = process.load(load(path))
        assert isinstance(answer, LoadFailed)
        assert "no classification head" in answer.message


@pytest.mark.parametrize("option", ["pooling=mean", "pooling=last"])
def test_the_dry_run_predicts_what_is_used(option: str) -> None:
    command = [sys.executable, "-m", "aivailable.worker.dry_run", "--path", str(smollm2_path())]
    command += ["--context", "1024", "--slots", "4", "--option", option]
    said = subprocess.run(command, capture_output=True, check=True, timeout=60)
    claim = sum(json.loads(said.stdout).values())
    name, value = option.split("=")
    with WorkerProcess() as process:
        given = load(smollm2_path(), context=1024, claim=claim, **{name: value})
        ready = process.load(given)
        assert isinstance(ready, Ready), ready
        assert ready.used_bytes["cpu0"] == pytest.approx(claim, abs=MIB // 8)
