"""A worker process with the real engine and a real small model (SmolLM2-135M)."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.models import gemma_path, smollm2_path
from fixtures.worker_process import MIB, WorkerProcess

from aivailable.wire.generation import Failed, Finished, Generate, Sampling
from aivailable.wire.worker import DeviceClaim, Load, LoadFailed, Ready

pytest.importorskip("llama_cpp", reason="aivailable[engine] is not installed")

GREEDY = Sampling(temperature=0.0)
CONTEXT, SLOTS = 4608, 2
CLAIM_BYTES = 512 * MIB
SLOT_FREE_WITHIN_S = 2.0
"""250 ms and one step; this machine may be busy with other tests."""


def load(path: Path | None = None, **changed: object) -> Load:
    claim = changed.pop("claim_bytes", CLAIM_BYTES)
    assert isinstance(claim, int)
    values: dict[str, object] = {
        "replica": "r1",
        "engine": "llama",
        "path": str(path or smollm2_path()),
        "context": CONTEXT,
        "slots": SLOTS,
        "devices": (DeviceClaim("cpu0", "cpu", 0, claim),),
        **changed,
    }
    return Load(**values)  # type: ignore[arg-type]


def chat(request_id: str, question: str, **more: object) -> Generate:
    messages = ({"role": "user", "content": question},)
    values: dict[str, object] = {"messages": messages, "sampling": GREEDY, "max_tokens": 32}
    return Generate(request_id, "d", **{**values, **more})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerProcess]:
    with WorkerProcess() as process:
        ready = process.load(load(check_tensors=True))
        assert isinstance(ready, Ready), ready
        assert 96 * 1_000_000 < ready.weights_bytes < 97 * 1_000_000
        assert ready.kv_bytes == pytest.approx(SLOTS * CONTEXT * 23040, abs=MIB)
        assert ready.used_bytes["cpu0"] == (
            ready.weights_bytes + ready.kv_bytes + ready.compute_bytes
        )
        yield process


QUESTIONS = ["Write one sentence about the sea.", "Name three colours.", "What is a river?"]


def test_batched_equals_solo(worker: WorkerProcess) -> None:
    solo = {}
    for number, question in enumerate(QUESTIONS):
        solo |= worker.answers(chat(f"s{number}", question))
    batched = worker.answers(
        *(chat(f"b{number}", question) for number, question in enumerate(QUESTIONS))
    )
    for number in range(len(QUESTIONS)):
        assert batched[f"b{number}"].text == solo[f"s{number}"].text
        assert batched[f"b{number}"].text.strip()


@pytest.mark.parametrize(("question", "cut"), [(q, c) for q in QUESTIONS[:2] for c in (1, 9)])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.9, seed=11)])
def test_continuation_equals_the_undisturbed_answer(
    worker: WorkerProcess, question: str, cut: int, sampling: Sampling
) -> None:
    name = f"{question}{cut}{sampling.seed}"
    whole = worker.answers(chat(f"{name}w", question, sampling=sampling))[f"{name}w"]
    rest = worker.answers(
        chat(
            f"{name}r",
            question,
            messages=None,
            prompt_ids=whole.prompt_ids,
            generated_ids=tuple(whole.ids[:cut]),
            sampling=sampling,
        )
    )[f"{name}r"]
    assert whole.ids[:cut] + rest.ids == whole.ids
    assert whole.text.endswith(rest.text)
    assert isinstance(rest.end, Finished)
    assert rest.end.completion_tokens == len(whole.ids)


def test_cancel_in_a_long_prefill_frees_the_slot_soon(worker: WorkerProcess) -> None:
    ids = tuple(100 + number % 5000 for number in range(4000))
    worker.send(chat("long", "", messages=None, prompt_ids=ids))
    assert worker.started("long").prompt_tokens == 4000
    began = time.monotonic()
    worker.cancel("long")
    end = worker.collect("long")["long"].end
    assert time.monotonic() - began < SLOT_FREE_WITHIN_S
    assert isinstance(end, Finished)
    assert (end.reason, end.completion_tokens) == ("cancelled", 0)
    assert worker.steps[-1].slots_busy == 0
    assert worker.answers(chat("after", QUESTIONS[0], max_tokens=4))["after"].ids


def test_prefix_is_reused(worker: WorkerProcess) -> None:
    story = "Tell me about rivers, lakes and the sea. " * 20
    first = worker.answers(chat("p1", story, max_tokens=2))["p1"].end
    again = worker.answers(chat("p2", story + " And ponds?", max_tokens=2))["p2"].end
    assert isinstance(first, Finished)
    assert isinstance(again, Finished)
    assert again.cached_tokens > first.prompt_tokens // 2
    assert again.cached_tokens < again.prompt_tokens


def test_stop_string_and_context_limit(worker: WorkerProcess) -> None:
    whole = worker.answers(chat("w", QUESTIONS[0]))["w"].text
    stop = whole[5:12]
    stopped = worker.answers(chat("stop", QUESTIONS[0], stop=(stop,)))["stop"]
    assert stopped.text == whole[: whole.index(stop)]
    assert isinstance(stopped.end, Finished)
    assert stopped.end.reason == "stop"
    long = worker.answers(chat("big", "", messages=None, prompt_ids=(5,) * CONTEXT))["big"].end
    assert isinstance(long, Failed)
    assert (long.code, long.status) == ("context_length_exceeded", 400)
    assert str(CONTEXT) in long.message


def test_emoji_text_is_whole_characters(worker: WorkerProcess) -> None:
    answer = worker.answers(
        chat("emoji", "", messages=None, prompt="😀😃😄😁😆😀😃😄😁😆😀😃", max_tokens=12)
    )["emoji"]
    assert "\ufffd" not in answer.text[:-1]


def refused(given: Load) -> LoadFailed:
    with WorkerProcess() as process:
        answer = process.load(given)
        assert isinstance(answer, LoadFailed), answer
        assert process.process.wait(10) == 1
        return answer


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(smollm2_path().read_bytes()[: 60 * MIB])
    answer = refused(load(path))
    assert answer.code == "bad_file"
    assert "truncated: 60 MiB of 94 MiB" in answer.message


def test_damaged_weights_are_refused_when_checked(tmp_path: Path) -> None:
    data = bytearray(smollm2_path().read_bytes())
    # The scales of quantized blocks become infinite.
    data[-40 * MIB :] = b"\xff" * (40 * MIB)
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data)
    assert refused(load(path, check_tensors=True)).code == "bad_file"


@pytest.mark.parametrize(
    ("changed", "code", "said"),
    [
        ({"claim_bytes": 200 * MIB}, "over_claim", "200.0 MiB claimed"),
        ({"options": {"kv_type": "q9"}}, "unsupported", "kv_type"),
        ({"options": {"ubatch": "1"}}, "unsupported", "ubatch"),
        ({"options": {"kv_type": "q8_0", "flash_attention": "off"}}, "unsupported", "flash"),
        ({"slots": 1000}, "unsupported", "1000 slots"),
        ({"context": 1 << 30}, "unsupported", "context"),
        ({"devices": (DeviceClaim("0", "cuda", 0, 8 << 30),)}, "not_fully_offloaded", "cuda"),
        ({"path": "/nonexistent.gguf"}, "bad_file", "cannot be read"),
    ],
)
def test_wrong_loads_are_refused(changed: dict[str, object], code: str, said: str) -> None:
    answer = refused(load(**changed))
    assert answer.code == code
    assert said in answer.message


def test_the_dry_run_predicts_what_is_used_with_quantized_kv() -> None:
    command = [sys.executable, "-m", "aivailable.worker.dry_run", "--path", str(smollm2_path())]
    command += ["--context", "1024", "--slots", "4", "--option", "kv_type=q8_0"]
    said = subprocess.run(command, capture_output=True, check=True, timeout=60)
    predicted = json.loads(said.stdout)
    claim = sum(predicted.values())
    with WorkerProcess() as process:
        ready = process.load(
            load(context=1024, slots=4, options={"kv_type": "q8_0"}, claim_bytes=claim)
        )
        assert isinstance(ready, Ready)
        assert ready.used_bytes["cpu0"] == pytest.approx(claim, abs=MIB // 8)


@pytest.mark.slow
def test_sliding_window_model_answers_and_has_no_chat_template() -> None:
    with WorkerProcess() as process:
        ready = process.load(load(gemma_path(), context=1024, slots=2))
        assert isinstance(ready, Ready)
        prompt = "The sun rises in the east and sets in the"
        more = {"messages": None, "prompt": prompt, "max_tokens": 8}
        first = process.answers(chat("g1", "", **more))["g1"]
        assert "west" in first.text
        again = process.answers(chat("g2", "", **more))["g2"]
        assert again.text == first.text
        failed = process.answers(chat("g3", "hello"))["g3"].end
        assert isinstance(failed, Failed)
        assert failed.code == "template_error"
